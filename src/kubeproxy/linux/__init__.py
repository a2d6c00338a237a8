"""Interfaces of Linux other than netlink: sysctls, programs, file notifications."""
