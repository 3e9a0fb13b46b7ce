"""Every setting, in one typed place: environment variables `WORKING_PAPERS_*` or a TOML file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from working_papers.errors import UserError


class Settings(BaseSettings):
    """The settings of one installation.

    Read from the environment (`WORKING_PAPERS_HOME` and so on), then from the TOML file that `WORKING_PAPERS_CONFIG`
    names, then the defaults below.
    """

    model_config = SettingsConfigDict(env_prefix="WORKING_PAPERS_", frozen=True, extra="forbid")

    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("working-papers", appauthor=False)),
        description="The one folder in which everything is kept: database, index, figures, cache.",
    )
    database: str = Field(
        default="",
        description="SQLAlchemy address of the database; empty: the SQLite file working-papers.db in the home folder.",
    )
    host: str = Field(default="127.0.0.1", description="Address the site listens on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port the site listens on; 0 takes a free one.")
    site_name: str = Field(default="Working Papers", description="Name shown at the top of every page.")
    base_url: str = Field(
        default="", description="Public address of the site, for links in feeds and metadata; empty: as requested."
    )
    embedding_model: str = Field(
        default="all-MiniLM-L6-v2",
        description="Sentence-embedding model: the packaged default, or a folder with a sentence-transformers model.",
    )
    embedding_threads: int = Field(default=1, ge=1, description="Threads the embedding process may use.")
    arxiv_url: str = Field(default="https://export.arxiv.org/api/query", description="Address of the arXiv API.")
    arxiv_oai_url: str = Field(
        default="https://oaipmh.arxiv.org/oai", description="Address of arXiv's OAI-PMH service, for the daily ingest."
    )
    hf_endpoint: str = Field(default="https://huggingface.co", description="Address of the Hugging Face API.")
    ingest_arxiv: str = Field(
        default="",
        description="arXiv categories that `serve` fetches every day, e.g. 'cs.LG,stat.ML'; empty: none.",
    )
    ingest_hf: bool = Field(
        default=False, description="Whether `serve` fetches the Hugging Face daily papers every day."
    )
    ingest_hour: int = Field(default=3, ge=0, le=23, description="Hour of the day (UTC) of the daily ingest.")
    digest_hour: int = Field(
        default=7, ge=0, le=23, description="Hour of the day (UTC) from which `serve` sends the digest."
    )
    mail_from: str = Field(
        default="Working Papers <papers@localhost>", description="Sender of e-mails, as in their From line."
    )
    smtp_host: str = Field(
        default="", description="Server that takes e-mails; empty: they are written as .eml files to the outbox folder."
    )
    smtp_port: int = Field(default=587, ge=1, le=65535, description="Port of the server that takes e-mails.")
    smtp_security: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="How the connection to it is secured: starttls, tls (from the start) or none."
    )
    smtp_user: str = Field(default="", description="Name to log in with there; empty: no login.")
    smtp_password: SecretStr = Field(default=SecretStr(""), description="Password to log in with there.")
    worker: bool = Field(default=True, description="Whether `serve` also starts a worker that runs queued studies.")
    worker_processes: int = Field(
        default=0, ge=0, description="Trials that a worker runs at once; 0: one for each processor."
    )
    trusted_proxies: str = Field(
        default="127.0.0.1",
        description="Addresses of reverse proxies whose X-Forwarded headers are believed, separated by commas.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="How log lines are written: text for people, json for programs."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is logged."
    )
    data: Path | None = Field(
        default=None,
        description="Folder with real data sets, each in a subfolder, for studies at paper scale; empty: data in the "
        "home folder.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments first, then the environment, then the TOML file."""
        file = os.environ.get("WORKING_PAPERS_CONFIG")
        toml = (TomlConfigSettingsSource(settings_cls, toml_file=file),) if file else ()
        return (init_settings, env_settings, *toml)

    @property
    def database_url(self) -> str:
        """The database's address, with the default filled in."""
        return self.database or f"sqlite:///{self.home / 'working-papers.db'}"

    @property
    def index_folder(self) -> Path:
        """The search index of this machine: derived from the database, may be deleted."""
        return self.home / "index"

    @property
    def figures_folder(self) -> Path:
        """Figures of this installation's own runs."""
        return self.home / "figures"

    @property
    def outbox_folder(self) -> Path:
        """E-mails as .eml files, where no server is set."""
        return self.home / "outbox"

    @property
    def data_folder(self) -> Path:
        """Real data sets, put there by whoever runs studies at paper scale."""
        return self.data or self.home / "data"

    @property
    def cache_folder(self) -> Path:
        """What may be deleted at any time and is made again."""
        return self.home / "cache"

    def make_home(self) -> Path:
        """Create the home folder if need be.

        Raises:
            UserError: the folder cannot be written.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            writable = os.access(self.home, os.W_OK)
        except OSError as error:
            raise UserError(
                f"the folder {self.home} cannot be made ({error.strerror}); "
                "set WORKING_PAPERS_HOME to a folder you may write"
            ) from error
        if not writable:
            raise UserError(
                f"the folder {self.home} cannot be written; set WORKING_PAPERS_HOME to a folder you may write"
            )
        return self.home


def load_settings() -> Settings:
    """Read the settings.

    Raises:
        UserError: a setting is wrong; the message names it.
    """
    file = os.environ.get("WORKING_PAPERS_CONFIG")
    if file and not Path(file).is_file():
        raise UserError(f"WORKING_PAPERS_CONFIG names {file}, which is not a file")
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"setting {name} (WORKING_PAPERS_{name.upper()}): {first['msg']}, got {first['input']!r}"
        ) from error
    except ValueError as error:  # a TOML file that does not parse
        raise UserError(f"{file}: not valid TOML ({error})") from error
