"""The router: HTTP, text and scheduling in one process that never imports torch."""
