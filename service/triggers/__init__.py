"""Rounds that start by themselves: when enough people have voted, after some hours, or at a time of the week.

settings.py  the section `[rounds]`
cron.py      times of the week, as cron writes them
due.py       whether a round is due, and why not
loop.py      the loop that asks, and starts one
"""
