"""Builds the Grafana dashboards in deploy/grafana: one module per dashboard.

Run `scripts/dashboards`, or `python -m grafana_dashboards` with `scripts` on the Python path.
"""
