"""Attacks of a system, a guest and a stranger's file, many times over."""
