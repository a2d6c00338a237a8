"""The rest of Linux that is not netlink: sysctls, programs, file notifications."""
