"""Search: words the moment a paper is imported, meaning as soon as its embedding is there."""

from working_papers.daily.search.background import EmbeddingBusy, Progress, embed_pending
from working_papers.daily.search.background import start as start_background
from working_papers.daily.search.files import IndexDamaged
from working_papers.daily.search.index import Hit, IndexStatus, SearchIndex, SearchResult, rebuild
from working_papers.daily.search.lexical import IndexRow

__all__ = [
    "EmbeddingBusy",
    "Hit",
    "IndexDamaged",
    "IndexRow",
    "IndexStatus",
    "Progress",
    "SearchIndex",
    "SearchResult",
    "embed_pending",
    "rebuild",
    "start_background",
]
