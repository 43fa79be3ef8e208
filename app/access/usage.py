"""What has been used with each key, of each adapter: counters that survive a restart.

They are saved every few seconds and at the end; a server that is killed loses what came since.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from pydantic import ValidationError

from app.versions.disk import replace_file
from softserve.schema.generation import UsageOut
from softserve.schema.keys import UsageReport, UsageRow

log = structlog.get_logger(__name__)

FILE_NAME = "usage.json"
SAVE_INTERVAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Consumer:
    """What is counted together."""

    key: str
    adapter: str | None
    soft_prompt: str | None


class UsageBook:
    """The counters of one server, kept in one file of its store."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / FILE_NAME
        self._since = datetime.now(UTC)
        self._rows: dict[Consumer, UsageRow] = {}
        self._is_saved = True
        self._can_be_saved = True
        self._ending = asyncio.Event()
        self._saving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Go on from what was saved. The store is this server's alone."""
        await asyncio.to_thread(self._read)
        self._saving = asyncio.create_task(self._keep_saving())

    async def close(self) -> None:
        """Save the last. Requests have ended."""
        self._ending.set()
        # Not cancelled: of two writes at once, the older could be the last.
        if self._saving is not None:
            await self._saving

    def add(self, account: Consumer, used: UsageOut) -> None:
        """Count one request."""
        row = self._rows.get(account)
        if row is None:
            row = self._rows[account] = UsageRow(
                key=account.key, adapter=account.adapter, soft_prompt=account.soft_prompt
            )
        row.requests += 1
        row.prompt_tokens += used.prompt_tokens
        row.cached_tokens += used.cached_tokens
        row.completion_tokens += used.completion_tokens
        self._is_saved = False

    def report(self, key: str | None = None) -> UsageReport:
        """Of one key, or of all."""
        rows = [row for row in self._rows.values() if key in {None, row.key}]
        rows.sort(key=lambda row: (row.key, row.adapter or "", row.soft_prompt or ""))
        return UsageReport(since=self._since, usage=rows)

    async def _keep_saving(self) -> None:
        while not self._ending.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), SAVE_INTERVAL_SECONDS)
            await self._save()

    async def _save(self) -> None:
        if self._is_saved:
            return
        # Before it is written: what is counted meanwhile is saved the next time.
        self._is_saved = True
        content = self.report().model_dump_json(indent=2)
        try:
            await asyncio.to_thread(replace_file, self._file, content)
        except OSError as error:
            self._is_saved = False
            if self._can_be_saved:
                log.error("usage cannot be saved: free some disk space", why=error.strerror)  # noqa: TRY400
        self._can_be_saved = self._is_saved

    def _read(self) -> None:
        try:
            report = UsageReport.model_validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return
        except ValidationError:
            damaged = self._file.with_suffix(".damaged")
            log.error("the usage file is damaged: counting begins anew", kept_as=str(damaged))  # noqa: TRY400
            with suppress(OSError):
                self._file.replace(damaged)
            return
        self._since = report.since
        for row in report.usage:
            self._rows[Consumer(row.key, row.adapter, row.soft_prompt)] = row
