#!/usr/bin/env bash
# The manifests are valid, promise what they should, and hold settings that the program takes; the chart's settings are the program's.
source "$(dirname "$0")/../lib.sh"
cd "$root"
program=${SIDEWINDER_BIN:-build/sidewinder}
needs python3
tests/run/venv deploy
python=$(dirname "$(tests/run/venv --path)")/deploy-venv/bin/python

check "the chart's settings are those of the program (deploy/helm/settings.py $program --write makes them so)" \
    "$python" deploy/helm/settings.py "$program"
check "the chart's values fit its schema" "$python" - <<'P'
import json, jsonschema, yaml
schema = json.load(open("deploy/helm/sidewinder/values.schema.json"))
jsonschema.Draft7Validator.check_schema(schema)
jsonschema.validate(yaml.safe_load(open("deploy/helm/sidewinder/values.yaml")), schema)
P
for name in workers sidecar sidecar-before-1.29; do
    valid=0
    "$python" deploy/k8s/validate.py "deploy/k8s/$name.yaml" >"$work/$name.out" 2>&1 || valid=$?
    check "$name.yaml is valid and keeps its promises" test $valid = 0
    grep '^not ok' "$work/$name.out" | sed 's/^/    /' || true
done

# What is in a ConfigMap is a file that the program reads, with the cookie where the pod has it.
"$python" - "$work" <<'P'
import sys, yaml
for name in "workers", "sidecar":
    for one in yaml.safe_load_all(open(f"deploy/k8s/{name}.yaml")):
        if one["kind"] == "ConfigMap":
            for file, text in one["data"].items():
                open(f"{sys.argv[1]}/{name}-{file}", "w").write(text)
P
printf x >"$work/cookie"
chmod 0400 "$work/cookie"
for file in workers-worker sidecar-sidecar; do
    sed -i -e "s#/run/secrets/sidewinder/cookie#$work/cookie#; s#/opt/venv##; s#\"/app\"#\"$work\"#" "$work/$file.json"
    check "the program takes the settings of $file.json" env POD_IP=127.0.0.1 "$program" --config "$work/$file.json" --check-config
    grep -q 'name = py@127.0.0.1' "$work/check.log" || not_ok "its name comes from the pod"
done
sed -i 's/"queue"/"queu"/' "$work/workers-worker.json"
check "and refuses one that it does not know" bash -c "! POD_IP=127.0.0.1 '$program' --config '$work/workers-worker.json' --check-config"

if command -v promtool >/dev/null; then
    check "Prometheus takes the rules" promtool check rules deploy/helm/sidewinder/files/rules.yaml
    check "each fires when it should" promtool test rules deploy/helm/rules_test.yaml
else
    echo "# no promtool here: nobody but YAML has looked at the rules"
fi
start node "$program" --name py@127.0.0.1 --cookie-file "$work/cookie" --peer nobody@127.0.0.1:1 --epmd off --admin 127.0.0.1:0
within 20 grep -q 'admin: listening on port' "$work/node.log"
check "each metric in the rules is one that the node has" "$python" - "$(sed -n 's/.*admin: listening on port //p' "$work/node.log")" <<'P'
import re, sys, urllib.request, yaml
known = urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/metrics").read().decode()
for group in yaml.safe_load(open("deploy/helm/sidewinder/files/rules.yaml"))["groups"]:
    for rule in group["rules"]:
        for name in re.findall(r"sidewinder_\w+", rule["expr"]):
            only_with_tls = name == "sidewinder_cert_expiry_seconds"
            assert only_with_tls or re.search(rf"^# TYPE {name} ", known, re.M), name
P
