"""The lab: a node and its neighbours made of network namespaces, and the tools to push packets through it.

`topology.Lab` builds it, `servers` answer in it, `probe` asks from every client who is reached through every front
address, `rules` reads the node's kernel the way the oracle was written down, `daemon` runs a proxy on the node, and
`cases` opens the oracle's cases. Nothing here imports the code under test. All of it needs root; see
`tests/oracle/README.md` for a drawing.
"""
