"""The quality gate: a version is compared with the one in use before it takes its place.

On the tenant's own golden pictures, with known boxes or with what the version in use sees; where
there are none, on the platform's sample pictures. In a throw-away sandbox, so that it works while
the tenant's runtime sleeps, and costs it nothing while it serves.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future

import msgspec

from polyolo import models, telemetry
from polyolo.comparejob import Result, Sight, Subject, Task, packed
from polyolo.control.artifacts import Artifacts
from polyolo.control.gatereport import Question, judged, sentence
from polyolo.control.memfile import gathered
from polyolo.control.service import golden, modelrows, tuning, versions
from polyolo.control.service.golden import Golden
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.errors import BelowToleranceError, InvalidValueError, NotReadyError
from polyolo.resources import ModelSettings
from polyolo.rollouts import GateReport
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.programs import Program
from polyolo.sealedfile import SealedFileError
from polyolo.types import DetectionSettings

_AT_ONCE = 2
"""Comparisons at the same time; each may take a core and the memory of two models."""
_KEPT = 256
"""Results that are kept: what is asked again, by a person who thinks twice, is answered at once."""
_TIME_S = 50.0
"""Seconds for a comparison; a gateway gives a request 60."""
_LOOKING_S = 25.0
"""Of these, seconds in which pictures are begun."""
_TRIES = 3  # of a change that others keep coming before
_CONFINEMENT = Confinement(
    memory_bytes=6 << 30,  # two models as large as a plan allows, their files three times over
    cpu_s=120,
    cpus=1.0,
    background=True,
    processes=128,
    file_bytes=1 << 20,
    scratch_bytes=1 << 20,
    open_files=256,
)

Contents = Iterable[Callable[[], Iterator[bytes]]]


class Gate:
    """Makes comparisons, each of them once. Any thread may use it."""

    def __init__(self, ledger: Ledger, store: Artifacts, vault: Vault, compare: Program) -> None:
        """Keep its parts. compare: compares two versions (see comparejob)."""
        self._ledger = ledger
        self._store = store
        self._vault = vault
        self._compare = compare
        self._slots = threading.Semaphore(_AT_ONCE)
        self._lock = threading.Lock()
        self._running: dict[bytes, Future[Result]] = {}
        self._known: OrderedDict[bytes, Result] = OrderedDict()

    def put_in_use(
        self, by: str, tenant: str, name: str, number: int, *, force: bool = False, why: str = ""
    ) -> None:
        """Put a version in use that is good enough; does nothing when it is in use.

        by: the event's actor. force: even if it is not, which the event then says. why: said in
        the event too. Raises BelowToleranceError with the report in `extensions`, NotFoundError,
        ConflictError, NotReadyError. Blocks for seconds.
        """
        for left in reversed(range(_TRIES)):
            question = self._question(tenant, name, number)
            if question.reference is None:
                return
            if question.taken_out and not force:
                raise versions.taken_out_error(name, number, question.taken_out)
            report = self._report(question)
            if not report.passed and not force:
                error = BelowToleranceError(f"{name}:{number} is not put in use: {report.note}")
                error.extensions["comparison"] = msgspec.to_builtins(report)
                raise error
            said = [why, sentence(report), "forced" if not report.passed else ""]
            try:
                versions.use(
                    self._ledger,
                    by,
                    tenant,
                    name,
                    number,
                    instead_of=question.reference,
                    detail="; ".join(part for part in said if part),
                    force=force,
                )
            except NotReadyError:  # another version was put in use meanwhile
                if not left:
                    raise
            else:
                return

    def report(self, tenant: str, name: str, number: int) -> GateReport:
        """Return how a version compares with the one in use. Raises NotFoundError."""
        return self._report(self._question(tenant, name, number))

    def check_settings(self, tenant: str, name: str, after: ModelSettings) -> None:
        """Raise InvalidValueError when the version in use cannot be opened with these settings."""
        with self._ledger.reading() as connection:
            row = modelrows.own(connection, tenant, name)
            version = modelrows.version(connection, tenant, name, row.current)
        if version.uri:
            return  # only its owner's runtime can read it
        subject = _subject(version, after)
        task = Task(candidate=subject, settings=_detection(after))
        result = self._run(task, [lambda: self._store.read(tenant, version.digest)])
        if result.refused:
            raise InvalidValueError(
                f"{name}:{row.current} cannot be served with these settings: {result.refused}"
            )

    def _question(self, tenant: str, name: str, number: int) -> Question:
        with self._ledger.reading() as connection:
            row = modelrows.own(connection, tenant, name)
            candidate = modelrows.version(connection, tenant, name, number)
            reference = None
            if row.current != number:
                reference = modelrows.version(connection, tenant, name, row.current)
            pictures = golden.read(connection, self._vault, tenant, name)
        settings = tuning.read(row)
        return Question(
            tenant=tenant,
            number=number,
            reference=None if reference is None else row.current,
            settings=settings,
            golden=bool(pictures),
            elsewhere=bool(candidate.uri or (reference is not None and reference.uri)),
            taken_out=candidate.taken_out,
            task=Task(
                candidate=_subject(candidate, settings),
                reference=None if reference is None else _subject(reference, settings),
                pictures=_sights(pictures),
                settings=_detection(settings),
                within_s=_LOOKING_S,
            ),
            digests=tuple(
                one.digest for one in (reference, candidate, *pictures) if one is not None
            ),
        )

    def _report(self, question: Question) -> GateReport:
        if question.elsewhere:
            return judged(question, Result())
        key = question.key()
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return judged(question, known)
            running = self._running.get(key)
            mine: Future[Result] | None = None
            if running is None:
                running = mine = self._running[key] = Future()
        if mine is not None:
            try:
                mine.set_result(self._run(question.task, self._contents(question)))
            except BaseException as error:
                mine.set_exception(error)
                raise
            finally:
                self._remember(key, mine)
        return judged(question, running.result())

    def _remember(self, key: bytes, done: Future[Result]) -> None:
        with self._lock:
            del self._running[key]
            if done.exception() is None and not done.result().refused:
                self._known[key] = done.result()
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)

    def _contents(self, question: Question) -> Contents:
        read, tenant = self._store.read, question.tenant
        for digest in question.digests:
            yield lambda digest=digest: read(tenant, digest)  # type: ignore[misc]
        if not question.golden:
            for path in models.sample_boards():
                yield lambda path=path: iter([path.read_bytes()])  # type: ignore[misc]

    def _run(self, task: Task, contents: Contents) -> Result:
        """Compare, confined. Raises NotReadyError when that cannot be done at the moment."""
        with self._slots:
            try:
                with gathered(packed(task, (one() for one in contents))) as file:
                    outcome = self._compare(file.descriptor, _CONFINEMENT, time_s=_TIME_S)
            except (FileNotFoundError, SealedFileError):
                return Result(
                    refused="a file that it needs is not in the platform's store as it was put "
                    "there; put the golden pictures, or push the version, again"
                )
        try:
            return msgspec.json.decode(outcome.output, type=Result)
        except (msgspec.DecodeError, ValueError):
            telemetry.logger("gate").warning(
                "a comparison gave no answer", ending=outcome.ending.value, code=outcome.code
            )
            return Result(
                refused="the comparison did not come to an end: it took more time or memory than "
                "it may, or the version ended it"
            )


def _subject(row: object, settings: ModelSettings) -> Subject:
    return Subject(
        size=row.size,  # type: ignore[attr-defined]  # a row of modelrows.versions
        family=row.family or None,  # type: ignore[attr-defined]
        classes=tuple(row.classes),  # type: ignore[attr-defined]
        engine="" if settings.engine == "auto" else settings.engine,
        input_size=settings.input_size,
    )


def _sights(pictures: Sequence[Golden]) -> tuple[Sight, ...]:
    if pictures:
        return tuple(
            Sight(size=one.size, name=str(one.number), expected=one.expected) for one in pictures
        )
    return tuple(Sight(size=path.stat().st_size, name=path.name) for path in models.sample_boards())


def _detection(settings: ModelSettings) -> DetectionSettings:
    return msgspec.convert(msgspec.to_builtins(settings), DetectionSettings)
