"""Takes model files in: gathered, judged, stored, recorded, in this order, or refused.

Whoever reconciles does this too, and alone: so a file is never judged twice at once, and nothing
is deleted that somebody else is just storing. Every step may be done again after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from polyolo import telemetry
from polyolo.control.artifacts import PLATFORM, Artifacts
from polyolo.control.conversion import Converter, converted
from polyolo.control.intake import CheckpointError, Facts, judge
from polyolo.control.memfile import MemoryFile, gathered
from polyolo.control.service import artifacts, limits, uploads
from polyolo.control.service.artifacts import Artifact
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.storages import Storages
from polyolo.control.workqueue import Workers
from polyolo.errors import ModelRefusedError, PolyoloError, TooLargeError
from polyolo.resources import Upload
from polyolo.sandbox.programs import Program
from polyolo.sealedfile import SealedFileError
from polyolo.types import Plan

AT_ONCE = 2
"""Files judged at the same time, each a tenant's only one; each may take a core and some GiB."""
_RETRY_S = 2.0
"""Until the next try after a failure that is not the file's (store away)."""
_SWEEP_S = 3600.0
_SETTLED_S = 24 * 3600.0
"""Age of a file of the platform's that nobody names, and that may be deleted: a control plane
that starts stores its standard model before it says so."""
_COPY_BYTES = 1 << 20
_EVERYBODY = ""  # stands in line for the sweep

T = TypeVar("T")


class Admission:
    """What its workers do for a tenant that has a file to be judged, or to be deleted."""

    def __init__(
        self,
        ledger: Ledger,
        store: Artifacts,
        storages: Storages,
        inspect: Program,
        converter: Converter,
        plans: Sequence[Plan],
        *,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """Prepare; nothing happens before the workers start.

        inspect: looks into a file (see intake). converter: turns checkpoints into ONNX, if
        anything does.
        leads: whether this control plane is the one that acts.
        """
        self._ledger = ledger
        self._store = store
        self._storages = storages
        self._inspect = inspect
        self._converter = converter
        self._plans = plans
        self._leads = leads
        self._storing: set[tuple[str, str]] = set()
        """Files that are stored, or about to be, and have no row yet."""
        self._log = telemetry.logger("admission")
        self.workers = Workers(
            "admission",
            ledger,
            self._step,
            leads=leads,
            first=lambda: [_EVERYBODY, *uploads.waiting(ledger)],
            threads=AT_ONCE,
        )

    def forget(self, tenant: str) -> None:
        """Delete the files of a tenant whose rows are gone."""
        self._store.delete_all(tenant)

    def _step(self, tenant: str) -> float | None:
        """Judge a tenant's next file and delete those it no longer needs.

        Returns the seconds until the next step, behind those of other tenants; None for no next.
        """
        if tenant == _EVERYBODY:
            self.sweep()
            return _SWEEP_S
        upload = uploads.due(self._ledger, tenant)
        if upload is not None:
            try:
                self._check(tenant, upload)
            except PolyoloError as error:
                if error.retryable:  # it is not the file's fault
                    self._log.warning("a check is put off", tenant=tenant, reason=error.detail)
                    uploads.put_off(self._ledger, upload, tenant)
                    return _RETRY_S
                uploads.refuse(self._ledger, upload, tenant, error)
            self._store.drop(tenant, upload.id)
        for digest in artifacts.unused(self._ledger, tenant):
            if artifacts.forget(self._ledger, tenant, digest):
                self._store.delete(tenant, digest)
        return None if upload is None else 0.0

    def _check(self, tenant: str, upload: Upload) -> None:
        """Bring an upload to its version. Raises the error that it is refused with."""
        uploads.begin_check(self._ledger, upload, tenant)
        plan = limits.of(self._ledger, tenant, self._plans)
        if upload.uri and self._storages.find(tenant).mounted:
            self._believe(upload, plan, tenant)
            return
        try:
            with gathered(self._bytes(tenant, upload, plan)) as file:
                if not upload.uri and file.size != upload.size:
                    raise ModelRefusedError("some of the file's bytes were lost; push it again")
                if upload.sha256 not in ("", file.sha256):
                    raise ModelRefusedError(
                        f"the sha256 of what arrived is {file.sha256}, not {upload.sha256}: the "
                        "file was changed on its way, or while it was read; push it again"
                    )
                self._admit(upload, plan, tenant, file)
        except SealedFileError:
            raise ModelRefusedError(
                "the file was damaged in the platform's store; push it again"
            ) from None

    def _believe(self, upload: Upload, plan: Plan, tenant: str) -> None:
        """Make a file a version that its tenant's runtime alone can look into."""
        if upload.size is None:  # the storage was another one when it was registered
            raise ModelRefusedError("its size was not told; register it again")
        facts = Facts(family="", classes=upload.classes)
        uploads.accept(
            self._ledger,
            upload,
            Artifact(
                tenant=tenant, digest=upload.sha256, size=upload.size, facts=facts, uri=upload.uri
            ),
            plan,
        )

    def _bytes(self, tenant: str, upload: Upload, plan: Plan) -> Iterator[bytes]:
        """Yield a file that has come, or that its tenant keeps itself."""
        if not upload.uri:
            yield from self._store.pieces(tenant, upload.id)
            return
        size = 0
        try:
            for piece in self._storages.opened(tenant, upload.uri):
                size += len(piece)
                if size > plan.max_model_bytes:
                    raise TooLargeError(
                        f"a model file may have {plan.max_model_bytes:,} bytes in the plan "
                        f"{plan.name}"
                    )
                yield piece
        except OSError as error:
            self._log.warning("a storage cannot be read", tenant=tenant, error=str(error))
            raise ModelRefusedError(f"there is no file {upload.uri} in your storage") from None

    def _admit(self, upload: Upload, plan: Plan, tenant: str, file: MemoryFile) -> None:
        try:
            facts = judge(file, upload.classes, self._inspect)
        except CheckpointError:
            if upload.uri:  # the platform would have to keep what it becomes
                raise
            with converted(file, self._converter, plan.max_model_bytes) as onnx:
                facts = judge(onnx, upload.classes, self._inspect)
                self._record(upload, plan, tenant, onnx, facts)
        else:
            self._record(upload, plan, tenant, file, facts)

    def _record(
        self, upload: Upload, plan: Plan, tenant: str, file: MemoryFile, facts: Facts
    ) -> None:
        artifact = Artifact(
            tenant=tenant, digest=file.sha256, size=file.size, facts=facts, uri=upload.uri
        )
        self._storing.add((tenant, file.sha256))
        try:
            if not upload.uri:
                self._store.keep(tenant, file.sha256, file.pieces())
            uploads.accept(self._ledger, upload, artifact, plan)
        except PolyoloError:
            if (tenant, file.sha256) not in artifacts.every(self._ledger, tenant):
                self._store.delete(tenant, file.sha256)
            raise
        finally:
            self._storing.discard((tenant, file.sha256))

    def sweep(self) -> None:
        """Delete what has expired, and what a platform that was killed left behind."""
        uploads.expire(self._ledger)
        stored = list(self._store.everything())
        # In this order: what was being stored is so still, or has its row by now.
        named = self._storing | artifacts.every(self._ledger)
        named |= {(tenant, one) for one, tenant in uploads.open_ones(self._ledger).items()}
        now = self._ledger.clock()
        for name, tenant, what, modified in stored:
            fresh = tenant == PLATFORM and modified > now - _SETTLED_S
            if (tenant, what) not in named and not fresh and self._leads():
                self._log.info("deleting what nobody needs", name=name)
                self._store.discard(name)


def admit_standard(
    ledger: Ledger,
    store: Artifacts,
    inspect: Program,
    path: Path,
    record: Callable[[Artifact], T],
) -> T:
    """Take in a copy of the operator's own file, of any size, and return what `record` makes of it.

    Raises ModelRefusedError, and OSError when it cannot be read.
    """

    def judged(file: MemoryFile) -> Artifact:
        facts = artifacts.known(ledger, file.sha256)
        if facts is None:
            facts = judge(file, (), inspect)
        return Artifact(tenant=PLATFORM, digest=file.sha256, size=file.size, facts=facts)

    with path.open("rb") as source, gathered(iter(lambda: source.read(_COPY_BYTES), b"")) as file:
        artifact = judged(file)
        if not store.has(PLATFORM, file.sha256):
            store.keep(PLATFORM, file.sha256, file.pieces())
    return record(artifact)
