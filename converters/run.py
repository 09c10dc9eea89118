"""Carrying out what was prepared: check, write, record, publish."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct, field

from converters.digests import DEFAULT_ALGORITHM, digest_of
from converters.engine import Progress, execute
from converters.errors import CheckpointError, CoverageError, OutputError
from converters.input_digests import input_digests
from converters.journal import JOURNAL, Journal, finished_shards, job_of, open_journal, why_useless
from converters.manifest import creation_time, make_manifest, write_manifest
from converters.planner import DEFAULT_MAX_SHARD_NBYTES
from converters.publish import check_free_space, publishing
from converters.schedule import Budget
from converters.side_files import MAX_CARRIED_NBYTES, write_config
from converters.source_checks import check_sources
from converters.spec import Spec
from converters.storage.base import DEFAULT_WRITE_OPTIONS, CheckpointWriter, WriteOptions
from converters.storage.file_digests import FileDigests
from converters.storage.files import raise_unwritable, read_small_file
from converters.storage.open_files import choose_reading
from converters.storage.remote_path import RemotePath
from converters.storage.writers import open_writer
from converters.text import printable

if TYPE_CHECKING:
    from converters.convert import Options, Prepared


class RunOptions(Struct, frozen=True):
    """How to write; none of it changes a byte of the output's tensors.

    Attributes:
        budget: memory and threads.
        overwrite: replace an output that is there, once the new one is complete.
        resume: go on with what a killed run of the same job has finished, and keep what this one has if it fails.
        write: whether to flush, and which digests to make.
        verify: a level of `converters.verify`, up to which the output must be proved right before it is published.
        io: how the source's files are read, one of `converters.storage.open_files.READING`.
    """

    budget: Budget
    overwrite: bool = False
    resume: bool = False
    write: WriteOptions = DEFAULT_WRITE_OPTIONS
    verify: str | None = None
    io: str = "auto"


class Outcome(Struct, frozen=True):
    """What a run did beside writing.

    Attributes:
        kept: the shards that an earlier run had finished.
        afresh: why what an earlier run had finished was thrown away; None if it wasn't, or if there was nothing.
    """

    kept: Sequence[str] = ()
    afresh: str | None = None


def check(prepared: Prepared, progress: Progress) -> None:
    """Compare what the plan demands to be equal, before anything is written.

    Raises:
        CoverageError: some of it isn't.
        CheckpointError: the source can't be read.
    """
    try:
        check_sources(prepared.plan, prepared.reader, progress)
    except CoverageError as error:
        if not prepared.is_adapter:
            raise
        from converters.adapters.config import explain_unequal

        raise explain_unequal(error) from None


def run(
    prepared: Prepared, output: Path, options: Options, how: RunOptions, *, inputs: Sequence[Path], progress: Progress
) -> Outcome:
    """Carry out what was prepared, and publish it.

    Args:
        prepared: by `prepare_to_run`, with these options.
        output: the directory to make.
        options: what was asked for; the manifest records it.
        how: how to write.
        inputs: what is read, none of which may lie in the output.
        progress: called with the number of bytes just written, from several threads.

    Raises:
        CheckpointError, CoverageError: the source can't be read, or holds values that the plan forbids.
        OutputError: the output can't be written.
        VerificationError: it was to be proved right, and isn't.
    """
    plan, reader = prepared.plan, prepared.reader
    creation_time()  # a wrong SOURCE_DATE_EPOCH is an error now, and not after hours of work
    inputs = [*inputs, reader.path]  # of a repository, what was downloaded
    choose_reading(reader, how.io)
    work = _Work(prepared, options, how, progress)
    if isinstance(output, RemotePath):
        from converters.uploads import UploadingWriter, uploading

        if how.resume or how.verify:
            what = f"nothing is {'resumed' if how.resume else 'verified before it is published'} in an object store"
            raise OutputError(what, printable(str(output)), "Convert into a local directory, and copy that.")
        with uploading(output, overwrite=how.overwrite, inputs=inputs) as upload:
            check_free_space(upload.staging, upload.spooled_nbytes(plan))
            work.write(upload.staging, UploadingWriter(upload, plan.shards, how.write))
        return Outcome()
    job = job_of(plan, reader, how.write.digest) if how.write.digest is not None else None

    useless: list[str] = []

    def worth(staging: Path) -> int:
        # In a directory that others may write, they could prepare one.
        if job is None or not staging.exists() or staging.stat().st_uid != os.geteuid():
            return 0
        if (why := why_useless(staging, job)) is not None:
            useless.append(why)
        return finished_shards(staging, job)

    with publishing(
        output,
        overwrite=how.overwrite,
        inputs=inputs,
        sync=how.write.sync,
        worth=worth if how.resume else None,
    ) as staging:
        try:
            journal = open_journal(staging, job, sync=how.write.sync) if job is not None else None
            kept_nbytes = sum(each.nbytes for each in journal.kept.values()) if journal else 0
            check_free_space(staging, plan.bytes_written - kept_nbytes)
            work.write(staging, open_writer(staging, plan.shards, how.write), journal)
        except OSError as error:  # readers have errors of their own, so this is about what is written
            raise_unwritable(error, Path(error.filename) if isinstance(error.filename, str) else staging)
    if journal is None:
        return Outcome()
    # Why another staging directory was of no use matters only if none was of any.
    return Outcome(tuple(journal.kept), journal.afresh or (useless[0] if useless and not journal.kept else None))


class _Work(Struct):
    """Writes everything that an output consists of into a staging directory."""

    prepared: Prepared
    options: Options
    how: RunOptions
    progress: Progress
    found: dict[int, FileDigests] = field(default_factory=dict)

    def write(self, staging: Path, writer: CheckpointWriter, journal: Journal | None = None) -> None:
        prepared, plan, digest = self.prepared, self.prepared.plan, self.how.write.digest
        check(prepared, self.progress)
        numbers = {shard.filename: number for number, shard in enumerate(plan.shards)}
        kept = journal.kept if journal is not None else {}
        self.found = {numbers[name]: digests for name, digests in kept.items()}

        def finished(shard: int, digests: FileDigests | None) -> None:
            if digests is not None:
                self.found[shard] = digests
                if journal is not None:
                    journal.add(digests)

        with input_digests(plan, prepared.reader, digest) as reading:
            try:
                execute(
                    plan,
                    prepared.reader,
                    writer,
                    self.how.budget,
                    self.progress,
                    kept=frozenset(self.found),
                    finished=finished,
                    watcher=reading if digest is not None else None,
                )
                reading.no_more()
                writer.finish()
            except BaseException:
                writer.abort()
                raise
            if plan.config is not None:
                write_config(staging, plan.config, prepared.target)
            prepared.side_files.copy_to(staging)
            inputs = reading.result()
        verified = self._verify(staging)
        prepared.reader.check_unchanged()
        manifest = make_manifest(
            prepared.spec,
            plan,
            command=command_text(prepared.spec, self.options, digest),
            inputs=[*inputs, *prepared.side_files.inputs(digest)],
            outputs=[*self.found.values(), *self._others(staging)],
            checks={**_checks(prepared, self.options, digest), "verify": verified},
        )
        write_manifest(staging, manifest, sync=self.how.write.sync)
        if journal is not None:
            journal.remove()

    def _verify(self, staging: Path) -> dict[str, str]:
        """Prove what is about to be published; gives the verdict on each level.

        Raises:
            VerificationError: it is wrong, or can't be proved.
        """
        if self.how.verify is None:
            return {}
        from converters.verify.run import verify

        spec = self.prepared.spec
        report = verify(
            spec.inverse() if spec.reverse else spec,
            self.prepared.reader.path,
            staging,
            level=self.how.verify,
            reverse=spec.reverse,
            converted_with=self.options,
            max_memory=self.how.budget.max_memory,
            threads=self.how.budget.threads,
            hash_files=False,
        )
        report.raise_for_failure(allow_not_proved=False)
        return {result.level: str(result.verdict) for result in report.levels}

    def _others(self, staging: Path) -> list[FileDigests]:
        """The files that are no shards, with their digests."""
        known = {digests.file for digests in self.found.values()} | {JOURNAL}
        found = []
        for path in sorted(path for path in staging.rglob("*") if path.is_file()):
            name = path.relative_to(staging).as_posix()
            if name in known:
                continue
            if (digest := self.how.write.digest) is None:
                found.append(FileDigests(name, path.stat().st_size, None))
                continue
            try:
                content = read_small_file(path, MAX_CARRIED_NBYTES, printable(str(path)))
            except CheckpointError as error:  # it is one that was just written
                raise OutputError(error.problems) from error
            found.append(FileDigests(name, len(content), digest_of([content], digest)))
        return found


def _checks(prepared: Prepared, options: Options, digest: str | None) -> Mapping[str, Any]:
    plan = prepared.plan
    return {
        "plan": "proved: every element of the source and of the target is accounted for, once",
        "exactness": prepared.spec.exactness + (f", then cast to {options.dtype}" if options.dtype else ""),
        "compared_nbytes": plan.bytes_checked,
        "read_back": digest is not None,
    }


def command_text(spec: Spec, options: Options, digest: str | None = DEFAULT_ALGORITHM) -> str:
    """A command that does the same again, whatever the place of its files."""
    words = ["weightmap", "convert", "--spec", spec.name]
    if spec.reverse:
        words.append("--reverse")
    if options.dtype is not None:
        words += ["--dtype", str(options.dtype)]
    if digest != DEFAULT_ALGORITHM:
        words += ["--digest", digest or "none"]
    if options.file_format is not None:
        words += ["--format", options.file_format]
    if options.max_shard_nbytes != DEFAULT_MAX_SHARD_NBYTES:
        words += ["--max-shard-size", str(options.max_shard_nbytes)]
    if options.config is not None:
        words += ["--config", "CONFIG"]
    for name, value in (options.dims or {}).items():
        words += ["--dim", f"{name}={value}"]
    for key, value in (options.set_config or {}).items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    import shlex

    return shlex.join([*words, "SOURCE", "OUTPUT"])
