"""Recognize public corpora, so that a loss is compared only with published losses on the same kind of text."""

from enum import StrEnum


class PublicCorpus(StrEnum):
    FINEWEB_EDU = "FineWeb-Edu"
    FINEWEB = "FineWeb"
    OTHER = "other"  # not one of these, or unknown


REPOSITORIES = {
    "huggingfacefw/fineweb-edu": PublicCorpus.FINEWEB_EDU,
    "huggingfacefw/fineweb": PublicCorpus.FINEWEB,
}


def corpus_of_source(source: str) -> PublicCorpus:
    """Return the corpus that `data.source` names: 'hub:OWNER/NAME/FOLDER'. Text from anywhere else is OTHER."""
    kind, _, path = source.partition(":")
    repository = "/".join(path.strip("/").lower().split("/")[:2])
    return REPOSITORIES.get(repository, PublicCorpus.OTHER) if kind == "hub" else PublicCorpus.OTHER


def corpus_of_imported_shards(name: str) -> PublicCorpus:
    """Guess the corpus of shards that regpt did not prepare, whose source is not recorded, from their folder's name.

    build-nanogpt and llm.c call the folders edu_fineweb10B, edu_fineweb100B and fineweb10B.
    """
    if "fineweb" not in name.lower():
        return PublicCorpus.OTHER
    return PublicCorpus.FINEWEB_EDU if "edu" in name.lower() else PublicCorpus.FINEWEB
