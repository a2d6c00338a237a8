"""nftables mode."""
