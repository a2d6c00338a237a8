"""The HCN API as Windows documents it, in C: libraries in place of Windows' own, and a client, run by Wine.

    computenetwork.c    computenetwork.dll: keeps documents, and counts handles
    vmcompute.c         vmcompute.dll: the version of HNS
    client.c            calls the functions that it reads about, and prints what they return
    client              that client, as `calls.Calls`
    hns                 the tests, run by `make windows`

All of it is compiled with mingw-w64's computenetwork.h. So a function whose name or arguments differ from the
documented ones does not compile, and a calling convention or an encoding that differs does not work.
"""
