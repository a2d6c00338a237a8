"""Interfaces of Windows: its Host Networking Service (HNS), and what the program needs of the host besides.

    values            what HNS has: networks, endpoints, load balancers
    documents         the same as the JSON documents that HNS takes and returns
    errors            the codes of HNS: names, what kind of trouble they are, and the remedy
    features          which version of HNS has which feature
    calls             the functions of computenetwork.dll and vmcompute.dll, as a Protocol
    binding           these functions through ctypes
    hcn               the dozen calls that a driver needs, `Hcn`, made of those functions
    fake              an HNS in memory that has the rules of the real one

    adapters          interfaces and their addresses, and notifications of changes
    console           Ctrl-C, Ctrl-Break, and the end of the console or of the host
    service_control   running as a service
    event_log         the log of the system
    instance          the lock that one kube-proxy of a host holds, and who holds it
    processes         the command line of another process
    jobs              ends a program with all its children
    fake_host         a host in memory, in place of adapters, instance and processes

    dll               functions of the system's libraries, through ctypes
    text              text in memory, as these functions take it

The modules know nothing of Services. All of them import on Linux. A binding takes the functions that it
calls, so that tests can give it functions that read and write the same memory as those of Windows.
"""
