"""Work shared out: nothing is lost or done twice, errors arrive, other work of the caller goes on."""

from functools import partial

import psutil
import pytest
from joblib import Parallel, delayed

from chestxray.processes import in_processes


def children():
    return [one for one in psutil.Process().children(recursive=True) if "resource_tracker" not in
            " ".join(one.cmdline()) and one.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(("count", "pieces"), [(0, 1), (64, 1), (65, 5), (200, 13)])
def test_every_item_is_worked_on_once(count, pieces):
    found = list(in_processes(sum, list(range(count)), "adding"))
    assert len(found) == pieces
    assert sum(found) == count * (count - 1) // 2


def test_an_error_arrives_as_it_was_raised_and_leaves_no_process():
    before = children()
    with pytest.raises(ValueError, match="invalid literal for int.*'no number'"):
        list(in_processes(partial(map_to_list, int), ["1"] * 99 + ["no number"], "reading"))
    assert children() == before


def map_to_list(function, items):
    return [function(item) for item in items]


def test_work_of_the_caller_goes_on():
    # A pool that is shared, or shut down for all, would leave the caller waiting.
    own = Parallel(n_jobs=2, return_as="generator")(delayed(abs)(-number) for number in range(40))
    assert next(own) == 0
    assert sum(in_processes(sum, list(range(100)), "adding")) == 4950
    assert list(own) == list(range(1, 40))
