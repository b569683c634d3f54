"""`GET /metrics`: what all replicas count, and how the service stands, in one text for Prometheus.

http.py      counts the requests of one HTTP application
refusals.py  how often answers refuse, by adapter
families.py  how the service stands, as metrics; the list of their names
merging.py   the replicas' texts as one
scrape.py    puts it all together
"""
