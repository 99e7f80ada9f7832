"""IHF-Harmony: invertible hierarchy flow (Zhu 2026)."""
