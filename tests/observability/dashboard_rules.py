"""Prints the expressions of conf/grafana.json as recording rules, for promtool to read them."""

import json
import re
import sys

VARIABLES = {"$__rate_interval": "5m", "$datasource": "prometheus"}


def written_out(expression):
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return re.sub(r"\$\w+", "any", expression)


def main():
    with open("conf/grafana.json", encoding="utf-8") as file:
        dashboard = json.load(file)
    targets = [target for panel in dashboard["panels"] for target in panel.get("targets", [])]
    expressions = [thing["expr"] for thing in targets + dashboard["annotations"]["list"]]
    rules = [{"record": f"dashboard:{i}", "expr": written_out(text)} for i, text in enumerate(expressions)]
    # JSON is YAML.
    json.dump({"groups": [{"name": "dashboard", "rules": rules}]}, sys.stdout)


if __name__ == "__main__":
    main()
