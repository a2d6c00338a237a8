"""The traffic of Services now: new and open connections, bytes, failures, by endpoint.

values    the answer, as it is written as JSON
fronts    which Service port a flow is for
flows     what connection tracking says: open connections, and what began and ended
relay     the same of a relay, in modes that have one
pace      how often a source may be read
figures   sums, rates and an order
watch     brings the sources together: readings, and rates between two of them
screen    the interactive view
"""
