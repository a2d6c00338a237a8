"""How a plan is made real: one package a proxy mode, each imported only when it is chosen."""
