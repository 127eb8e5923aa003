"""Preference training: DPO and ORPO."""
