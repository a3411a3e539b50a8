"""A web page to try linkers on (``mimic-pl app``): a caller of :class:`~mimic_pl.linking.Linker` and of the report.

- :mod:`~mimic_pl.app.actions`: what the buttons of the page do; returns HTML.
- :mod:`~mimic_pl.app.mention_form`: the record of a mention from what was typed, marked and dropped.
- :mod:`~mimic_pl.app.rendering`: links, explanations and comparisons as HTML; all texts are escaped.
- :mod:`~mimic_pl.app.error_browser`: the errors of a test run, filtered.
- :mod:`~mimic_pl.app.page`: the page itself, in Gradio, and the application that serves it.
- :mod:`~mimic_pl.app.page_guard`: which requests it answers. It loads nothing from another host.
"""
