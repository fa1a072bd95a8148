"""Dollars: what nodes cost, a ledger of what was bought, and a cap that holds.

    prices, spot, node    what a node is, and what it costs
    entries, book         the ledger's entries and their arithmetic, pure
    ledger                the same on storage: a file, or S3
    cap                   what may be bought, pure
    accountant, cluster   these at work beside a driver; watchdog enforces it on each node
    bill, remote          what a training sees of it, also from another process
    report, cloud         what went where: `raygen cost STORAGE`; what AWS knows better

Seconds are Unix seconds, prices dollars an hour.
"""
