"""Linkers inside other programs: callers of :class:`~mimic_pl.linking.Linker` that score nothing by themselves.

- :mod:`~mimic_pl.serve.app`: the REST server (``mimic-pl serve``), with the reconciliation API that OpenRefine speaks
  (:mod:`~mimic_pl.serve.reconciliation`) and REL's request (:mod:`~mimic_pl.serve.rel`). Mentions of concurrent
  requests are linked together (:mod:`~mimic_pl.serve.batching`); what is too large is refused
  (:mod:`~mimic_pl.serve.limits`). Several servers share one knowledge base: a change through one of them is seen by the
  others within a second.
- :mod:`~mimic_pl.serve.spacy_component`: the pipeline component ``mimic_linker`` of spaCy.
"""
