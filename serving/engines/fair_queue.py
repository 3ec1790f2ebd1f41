"""A queue that is fair between tenants, and within one between its tasks.

Tenants take turns, the tasks of a tenant take turns, and within a task who came first is served first: a tenant with a thousand
pictures waiting, or a thousand tasks, costs another with one picture no more than one place.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items are told apart by identity or hash.  Every operation on one item takes constant time."""

    def __init__(self) -> None:
        # ordered dictionaries throughout: a plain one finds its first key slowly after many first keys have gone
        self._places: OrderedDict[Item, tuple[str, str]] = OrderedDict()
        """item -> tenant and task, in order of arrival."""
        self._tenants: OrderedDict[str, OrderedDict[str, OrderedDict[Item, None]]] = OrderedDict()
        """tenant -> task -> items; whose turn is next comes first."""

    def __len__(self) -> int:
        return len(self._places)

    @property
    def oldest(self) -> Item:
        """Whichever has waited longest; there has to be one."""
        return next(iter(self._places))

    def put(self, item: Item, *, tenant: str, task: str) -> None:
        """A tenant or task that had nothing waiting comes behind those that have."""
        self._places[item] = (tenant, task)
        self._tenants.setdefault(tenant, OrderedDict()).setdefault(task, OrderedDict())[item] = None

    def discard(self, item: Item) -> None:
        """Take one out, wherever it is; one that is not there is no error."""
        place = self._places.pop(item, None)
        if place is None:
            return
        tenant, task = place
        tasks = self._tenants[tenant]
        del tasks[task][item]
        if not tasks[task]:
            del tasks[task]
        if not tasks:
            del self._tenants[tenant]

    def take(self, most: int) -> list[Item]:
        """Take out up to `most` items, in the order of turns."""
        taken: list[Item] = []
        while self._tenants and len(taken) < most:
            tenant, tasks = next(iter(self._tenants.items()))
            task, items = next(iter(tasks.items()))
            item = next(iter(items))
            self._tenants.move_to_end(tenant)
            tasks.move_to_end(task)
            self.discard(item)
            taken.append(item)
        return taken
