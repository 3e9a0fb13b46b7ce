"""What a paper's page says in its head to programs that collect citations.

The tags are those of Highwire Press, which Google Scholar's guidelines for webmasters recommend and Zotero's translator
"Embedded Metadata" reads: it takes a paper for one of a conference or of a journal by the tag that names where it
appeared, and the date as year/month/day.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from working_papers.web.papers import PaperView

CONFERENCES = re.compile(
    r"\b(?:AAAI|ACL|AISTATS|AutoML|COLING|COLM|COLT|CoRL|CVPR|DySPAN|ECAI|ECCV|EMNLP|ICASSP|ICCV|ICDE|ICLR|ICML|ICNP|ICRA"
    r"|IJCAI|Interspeech|IROS|KDD|MICCAI|NAACL|NeurIPS|NIPS|RSS|SIGGRAPH|SIGIR|SIGMOD|UAI|VLDB|WACV|WSDM|WWW)\b"
)
"""Names by which conferences of this field are known; a venue that holds none of them is taken for a journal."""

_YEAR = re.compile(r"\b(?:19|20)\d{2}\b")
_NAME = re.compile(r"[^\d(,:;]*")


def citation_tags(paper: PaperView) -> list[tuple[str, str]]:
    """Names and contents of the meta tags, in order; one for each author."""
    tags = [("citation_title", paper.title)]
    tags += [("citation_author", name) for name in paper.authors]
    if paper.published:
        date = f"{paper.published.year:04}/{paper.published:%m/%d}"
        tags += [("citation_publication_date", date), ("citation_date", date)]
    tags += _published_in(paper.venue)
    if paper.arxiv:
        tags.append(("citation_arxiv_id", paper.arxiv))
    if paper.doi:
        tags.append(("citation_doi", paper.doi))
    if paper.pdf:
        tags.append(("citation_pdf_url", paper.pdf))
    if paper.link:
        tags.append(("citation_public_url", paper.link))
    if paper.topics:
        tags.append(("citation_keywords", "; ".join(paper.topics)))
    if paper.abstract:
        tags.append(("citation_abstract", paper.abstract))
    return tags


def _published_in(venue: str) -> list[tuple[str, str]]:
    """Where it appeared: without remarks such as "spotlight", and a journal without volume and pages."""
    found = _NAME.match(venue)
    name, year = found[0].strip() if found else "", _YEAR.search(venue)
    if not name:
        return []
    if CONFERENCES.search(name):
        return [("citation_conference_title", f"{name} {year[0]}" if year else name)]
    if "(book)" in venue:
        return [("citation_publisher", name)]
    return [("citation_journal_title", name)]
