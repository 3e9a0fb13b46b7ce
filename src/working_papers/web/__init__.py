"""The pages: feed, papers, rooms, search and status over the daily and the bench."""
