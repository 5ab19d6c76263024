"""The processes of a watched run: the first decides, measures and writes, the others help it.

They meet in the training's hooks, at steps that all of them know beforehand. In a meeting the
others do what the first process asks of them until it says to go on. No framework is known here.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from ntkwatch.errors import ProcessError
from ntkwatch.integrations.processes.mirrored import LeadingTracker, Mirror
from ntkwatch.integrations.processes.shared_shards import SharedShards
from ntkwatch.watch.processes.asking import Asking
from ntkwatch.watch.processes.helping import Helper
from ntkwatch.watch.processes.request import Request, in_words
from ntkwatch.watch.processes.team import Team
from ntkwatch.watch.tracker import KernelTracker

__all__ = ["Crew", "Hook", "News"]

_log = logging.getLogger("ntkwatch")

Hook = Literal["train start", "batch start", "batch end", "epoch end", "train end"]


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What the first process says at the end of a meeting.

    Attributes:
        over: Whether there will be no other.
        has_reference: Whether the reference is taken; before, they meet at every batch.
        next_step: The first step at which the first process may observe.
        failure: What is to be raised by all, in words; or nothing.
        found: By tag, what other callbacks find of this run; each process asks its own trainer.
    """

    over: bool = False
    has_reference: bool = False
    next_step: float = -math.inf
    failure: str = ""
    found: Mapping[str, float] = field(default_factory=dict)


class Crew:
    """All processes of a run, as one of them sees them.

    Args:
        team: They; None where this process watches by itself.
        mirrors: Whether each process holds shards of the model, so that all of them must observe.
        settings: Arguments of ``KernelTracker``.
        raises: Whether failures are raised.
    """

    def __init__(
        self,
        team: Team | None = None,
        *,
        mirrors: bool = False,
        settings: Mapping[str, Any] | None = None,
        raises: bool = False,
    ) -> None:
        self._team, self._raises = team, raises
        self._news = News()
        self._settings = dict(settings or {})
        self._asking = None if team is None or mirrors else Asking(team, raises=raises)
        self._mirror: Mirror | None = None
        self._helper: Helper | None = None
        self._mirrors, self._is_meeting, self._has_told = mirrors, False, False
        if team is not None and not team.is_first:
            self._mirror = Mirror(team, self._settings)
            wanted = self._settings.get("outputs")
            function = wanted if callable(wanted) else None
            self._helper = Helper(team, forward=self._settings.get("forward"), outputs=function)

    @property
    def is_alone(self) -> bool:
        """Whether this process watches by itself."""
        return self._team is None

    @property
    def found(self) -> Mapping[str, float]:
        """What the first process last told of the tags that other callbacks may monitor."""
        return self._news.found

    @property
    def shared_kernels(self) -> int:
        """Kernels that the processes have computed together, each a share."""
        return 0 if self._asking is None else self._asking.shared

    def new_tracker(self, *args: Any, **settings: Any) -> KernelTracker:
        """Return a tracker that has the others' help."""
        if self._team is not None and self._mirrors:
            return LeadingTracker(self._team, *args, **settings)
        helpers = None if self._asking is None else self._asking.kernel
        return KernelTracker(*args, helpers=helpers, **settings)

    def shards_of(self, model: nn.Module) -> SharedShards | None:
        """Return how the processes keep anchors of a model that they hold shards of, or None."""
        if self._team is None or not self._mirrors:
            return None
        return SharedShards(self._team, model, lambda: self._is_meeting and not self.is_alone)

    def meeting(
        self, hook: Hook, model: nn.Module, step: int, news: Callable[[], News]
    ) -> AbstractContextManager[None]:
        """Meet, if it is time: the first process observes inside this, while the others help it.

        Args:
            hook: Where training is.
            model: This process's model.
            step: Optimizer steps taken so far.
            news: Called at the end, in the first process.

        Returns:
            A context.
        """
        if self._team is None or not self._is_due(hook, step):
            return nullcontext()
        return self._meeting(hook, model, self._team, news)

    @contextmanager
    def _meeting(
        self, hook: Hook, model: nn.Module, team: Team, news: Callable[[], News]
    ) -> Iterator[None]:
        if not team.is_first:
            self._help(hook, model, team)
            yield
        else:
            failure, self._is_meeting = "", True
            try:
                yield
            except Exception as error:
                failure = in_words(error)
                raise
            except BaseException:
                self.leave()
                raise
            finally:
                self._is_meeting = False
                self._dismiss(news(), failure)

    def leave(self) -> None:
        """Take leave of the others, who need not wait for this process any more."""
        if self._team is not None:
            self._team.close()
        self._team = self._mirror = self._helper = None
        if self._asking is not None:
            self._asking.alone = True

    def _is_due(self, hook: Hook, step: int) -> bool:
        if self._news.over:
            return False
        if hook in ("train start", "train end"):
            return True
        if not self._news.has_reference:
            return hook in ("batch start", "epoch end")
        return hook == "batch end" and step >= self._news.next_step

    def _dismiss(self, news: News, failure: str) -> None:
        if self._team is None:
            return
        self._news = News(
            over=news.over or bool(failure),
            has_reference=news.has_reference,
            next_step=news.next_step,
            failure=failure,
            found=news.found,
        )
        try:
            self._team.tell(self._news)
        except RuntimeError:  # another process is gone, and training will say so
            self.leave()

    def _help(self, hook: Hook, model: nn.Module, team: Team) -> None:
        """Do as the first process asks, until it has no more to ask."""
        assert self._mirror is not None
        if hook == "batch start" and self._mirrors:
            self._mirror.keep_first_state(model)
        try:
            while not isinstance(message := team.tell(), News):
                self._do(message, model)
        except RuntimeError:  # the first process is gone, and training will say so
            self.leave()
            return
        except Exception as error:
            self.leave()
            if self._raises:
                raise
            warnings.warn(
                f"ntkwatch: this process helps the first one no more, and training goes on: "
                f"{in_words(error)}",
                stacklevel=2,
            )
            return
        except BaseException:
            self.leave()
            raise
        self._news = message
        harm = None if self._helper is None else self._helper.failure
        if harm is not None:
            self._tell_of(harm)
        if message.failure and self._raises:
            raise ProcessError(
                f"the first process stopped watching, and this one does as it was told to by "
                f"on_error='raise': {message.failure}"
            )

    def _tell_of(self, harm: Exception) -> None:
        """What measuring did to this process; the first one hears of it when it asks again."""
        if self._has_told:
            return
        self._has_told = True
        _log.error("helping to observe changed the training: %s", harm)
        warnings.warn(
            f"ntkwatch: this process helps to measure no more: {in_words(harm)}", stacklevel=2
        )

    def _do(self, message: object, model: nn.Module) -> None:
        assert self._helper is not None
        assert self._mirror is not None
        if isinstance(message, Request):
            self._helper.answer(model, message)
        else:
            self._mirror.do(message, model)
