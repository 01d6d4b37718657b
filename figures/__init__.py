"""Pictures and tables from saved results; nothing here trains or differentiates."""
