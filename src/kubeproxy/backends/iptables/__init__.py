"""iptables mode: the reference's rules, to the letter, sent as the smallest difference that makes them so."""
