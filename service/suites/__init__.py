"""Frozen questions that every candidate is asked: JSONL files, how an answer to each is graded, and what they keep out."""
