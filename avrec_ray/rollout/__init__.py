"""Which bundle a running service serves to whom, and how one follows another: records and judgements.

Reading order: lineup (who gets what) -> store (the record that gateways follow) -> guard (is the candidate well?)
-> replay (is it as good?) -> interleaving (which one do users choose from?).
"""
