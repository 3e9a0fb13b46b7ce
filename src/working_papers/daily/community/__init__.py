"""What accounts do with papers: votes, comments, submissions, saved searches; and what trends."""
