"""Everything one runs: thin commands on top, their workshop beneath (data, engine, evaluation, report)."""
