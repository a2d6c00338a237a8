"""What a `load` would do to the table of nftables mode, as a value that can be compared, printed and sent.

It is found by a `load` into a kernel in memory that holds what was read: so there is one way to compare, the
daemon's own.
"""

from msgspec import Struct

from kubeproxy.backends.nftables.held import HeldTable
from kubeproxy.netlink.nft import messages, text
from kubeproxy.netlink.nft.fake import FakeNftKernel
from kubeproxy.netlink.nft.kernel import NftKernel
from kubeproxy.netlink.nft.messages import NftMessage


class TableSteps(Struct, frozen=True, gc=False):
    """What is to be done to the table.

    Attributes:
        commits: the transactions in their order.
        sets: messages that made the sets that are there already.
    """

    commits: tuple[tuple[NftMessage, ...], ...]
    sets: tuple[NftMessage, ...] = ()

    def __len__(self) -> int:
        return len(self.commits)

    def lines(self) -> list[str]:
        """See `LoadSteps`."""
        return list(text.commands((each for commit in self.commits for each in commit), self.sets))

    def send(self, kernel: NftKernel) -> None:
        """Executes the steps.

        Raises:
            TransactionRefusedError: a transaction was refused; those before it are done.
        """
        for commit in self.commits:
            kernel.commit(commit)


def steps(held: HeldTable, kernel: FakeNftKernel) -> TableSteps:
    """What was sent to a kernel in memory that held this."""
    known = tuple([message for message in held.made if message.kind == messages.NEWSET])
    return TableSteps(tuple(tuple(commit) for commit in kernel.commits), known)
