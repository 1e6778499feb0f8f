#!/usr/bin/env bash
# Helm finds nothing wrong in the chart, every combination renders to something valid, wrong values are refused, and the plain
# manifests are what it renders.
source "$(dirname "$0")/../lib.sh"
cd "$root"
needs python3
helm=$(deploy/helm/get)
tests/run/venv deploy
python=$(dirname "$(tests/run/venv --path)")/deploy-venv/bin/python
chart=deploy/helm/sidewinder
cookie=(--set cookie.existingSecret=cookie)
app=(--set app.enabled=true --set app.image=app:1)

check "helm lint finds nothing" "$helm" lint --strict "$chart" "${cookie[@]}"

valid() {
    "$helm" template demo "$chart" "$@" >"$work/rendered.yaml" && "$python" deploy/k8s/validate.py "$work/rendered.yaml"
}
check "workers" valid "${cookie[@]}"
check "one worker needs no disruption budget" bash -c "'$helm' template demo $chart ${cookie[*]} --set workers.replicas=1 | { ! grep PodDisruptionBudget; }"
check "a BEAM with a native sidecar, and workers" valid "${cookie[@]}" "${app[@]}" --set 'app.ports[0].containerPort=4000'
check "a native sidecar is an init container that is restarted" "$python" - "$work/rendered.yaml" <<'P'
import sys, yaml
(app,) = [one for one in yaml.safe_load_all(open(sys.argv[1])) if one["kind"] == "Deployment"]
pod = app["spec"]["template"]["spec"]
assert [(c["name"], c["restartPolicy"]) for c in pod["initContainers"]] == [("sidewinder", "Always")]
assert [c["name"] for c in pod["containers"]] == ["app"]
P
check "a BEAM with a second container" valid "${cookie[@]}" "${app[@]}" --set sidecar.native=false --set workers.enabled=false
check "it is no init container" bash -c "! grep -E 'initContainers|restartPolicy' '$work/rendered.yaml'"
check "a cookie of its own is a Secret" valid --set cookie.value=secret
check "with the cookie in it and nowhere else" bash -c "test \$(grep -c '\"secret\"' '$work/rendered.yaml') = 1"
check "monitors, rules and every list" valid "${cookie[@]}" --set serviceMonitor.enabled=true --set prometheusRule.enabled=true \
    --set 'workers.tolerations[0].operator=Exists' --set workers.nodeSelector.gpu=yes --set workers.priorityClassName=high \
    --set 'volumes[0].name=code,volumes[0].configMap.name=code' --set 'volumeMounts[0].name=code,volumeMounts[0].mountPath=/app' \
    --set 'env[0].name=X,env[0].value=y' --set 'imagePullSecrets[0].name=pull'
check "the ServiceMonitor's port is one of the Service" "$python" - "$work/rendered.yaml" <<'P'
import sys, yaml
by = {one["kind"]: one for one in yaml.safe_load_all(open(sys.argv[1]))}
ports = {port["name"] for port in by["Service"]["spec"]["ports"]}
assert {endpoint["port"] for endpoint in by["ServiceMonitor"]["spec"]["endpoints"]} <= ports
assert by["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items() <= by["Service"]["metadata"]["labels"].items()
assert by["PrometheusRule"]["spec"]["groups"][0]["rules"]
P

web=(--set web.enabled=true)
check "web applications" valid "${cookie[@]}" "${web[@]}" --set settings.serve=shop:app --set web.port=8080 --set web.service.type=LoadBalancer \
    --set web.service.annotations.a=b --set 'web.from[0].podSelector.matchLabels.a=b' "${app[@]}"
check "have a Service, which is the workers' port, open to whom it is for, and what they listen on" "$python" - "$work/rendered.yaml" <<'P'
import json, sys, yaml
all = [one for one in yaml.safe_load_all(open(sys.argv[1])) if one]
(service,) = [one for one in all if one["kind"] == "Service" and one["metadata"]["name"].endswith("-web")]
(pods,) = [one["spec"]["template"] for one in all if one["kind"] == "StatefulSet"]
(settings,) = [one["data"] for one in all if one["kind"] == "ConfigMap"]
(port,) = service["spec"]["ports"]
assert (service["spec"]["type"], service["metadata"]["annotations"], port["port"]) == ("LoadBalancer", {"a": "b"}, 80)
assert service["spec"]["selector"].items() <= pods["metadata"]["labels"].items()
ports = {one["name"]: one["containerPort"] for one in pods["spec"]["containers"][0]["ports"]}
assert ports[port["targetPort"]] == 8080
worker, sidecar = json.loads(settings["worker.json"]), json.loads(settings["sidecar.json"])
assert (worker["serve"], worker["bind"]) == ("shop:app", [":8080"]) and "bind" not in sidecar
(policy,) = [one for one in all if one["kind"] == "NetworkPolicy" and not one["metadata"]["name"].endswith("-app")]
(rule,) = [one for one in policy["spec"]["ingress"] if one["ports"][0]["port"] == 8080]
assert rule["from"] == [{"podSelector": {"matchLabels": {"a": "b"}}}]
P
check "web applications for everybody" valid "${cookie[@]}" "${web[@]}" --set 'settings.mount[0]=/a=shop:app'
check "are open to everybody" "$python" - "$work/rendered.yaml" <<'P'
import sys, yaml
(policy,) = [one for one in yaml.safe_load_all(open(sys.argv[1])) if one and one["kind"] == "NetworkPolicy"]
assert [one for one in policy["spec"]["ingress"] if "from" not in one] == [{"ports": [{"port": 8000, "protocol": "TCP"}]}]
P

refused() {
    local why=$1
    shift
    if "$helm" template demo "$chart" "$@" >"$work/rendered.yaml" 2>&1; then return 1; fi
    cat "$work/rendered.yaml"
    grep -q -- "$why" "$work/rendered.yaml"
}
check "no cookie is refused" refused "give existingSecret or value"
check "a setting that the program does not have is refused" refused "wokers" "${cookie[@]}" --set settings.wokers=3
check "a value of the wrong type is refused" refused "workers" "${cookie[@]}" --set settings.workers=many
check "a grace period that the drain outlasts is refused" refused "longer than" "${cookie[@]}" --set settings.drain-timeout=30
check "an application without an image is refused" refused "app.image" "${cookie[@]}" --set app.enabled=true

check "a web port without an application is refused" refused "settings.serve or settings.mount" "${cookie[@]}" "${web[@]}"
check "two words on where to listen are refused" refused "leave it empty" "${cookie[@]}" "${web[@]}" --set settings.serve=a:b --set 'settings.bind[0]=:80'
check "a web port without workers is refused" refused "workers serve" "${cookie[@]}" "${web[@]}" "${app[@]}" --set settings.serve=a:b --set workers.enabled=false

check "certificates of a Secret" valid "${cookie[@]}" --set tls.existingSecret=certificates
check "are files in the pod, and settings" bash -c "grep -q '\"tls-key\": \"/run/secrets/sidewinder-tls/tls.key\"' '$work/rendered.yaml' &&
    grep -q 'secretName: certificates' '$work/rendered.yaml' && grep -q 'mountPath: /run/secrets/sidewinder-tls' '$work/rendered.yaml'"
names=py@{pod_name}.demo-sidewinder-workers.{pod_namespace}.svc.cluster.local
check "certificates of cert-manager" valid "${cookie[@]}" --set tls.issuer=ca --set "settings.name=$names"
check "are for the hosts of the names" "$python" - "$work/rendered.yaml" <<'P'
import fnmatch, json, sys, yaml
by = {one["kind"]: one for one in yaml.safe_load_all(open(sys.argv[1]))}
name = json.loads(by["ConfigMap"]["data"]["worker.json"])["name"]
host = name.partition("@")[2].format(pod_name=by["StatefulSet"]["metadata"]["name"] + "-0", pod_namespace="default")
assert any(fnmatch.fnmatch(host, pattern) for pattern in by["Certificate"]["spec"]["dnsNames"]), host
secrets = {volume["secret"]["secretName"] for volume in by["StatefulSet"]["spec"]["template"]["spec"]["volumes"] if "secret" in volume}
assert by["Certificate"]["spec"]["secretName"] in secrets
P
check "and not for names with addresses" refused "names, not addresses" "${cookie[@]}" --set tls.issuer=ca

# The example of README.md, as a chart.
mkdir -p "$work/mine/templates" "$work/mine/charts"
cp -r "$chart" "$work/mine/charts/sidewinder"
printf 'apiVersion: v2\nname: mine\nversion: 1.0.0\ndependencies: [{name: sidewinder, version: 0.1.0}]\n' >"$work/mine/Chart.yaml"
printf 'sidewinder: {workers: {enabled: false}, cookie: {existingSecret: cookie}}\n' >"$work/mine/values.yaml"
{
    printf 'apiVersion: v1\nkind: Pod\nmetadata: {name: mine}\nspec:\n'
    sed -n '/^```yaml$/,/^```$/p' deploy/helm/README.md | sed '/^```/d; s/^    //; s/nindent 8/nindent 4/; s/name: app .*/name: app\n      image: app:1/'
} >"$work/mine/templates/pod.yaml"
mine() { "$helm" template mine "$work/mine" >"$work/rendered.yaml" && cat "$work/rendered.yaml"; }
check "a chart that includes the sidecar renders" mine
check "and has it in its pod" "$python" - "$work/rendered.yaml" <<'P'
import sys, yaml, kubernetes_validate
(pod,) = [one for one in yaml.safe_load_all(open(sys.argv[1])) if one["kind"] == "Pod"]
kubernetes_validate.validate(pod, "1.37", strict=True)
assert [(c["name"], c["restartPolicy"]) for c in pod["spec"]["initContainers"]] == [("sidewinder", "Always")]
assert {v["name"] for v in pod["spec"]["volumes"]} >= {"sidewinder-cookie", "sidewinder-settings", "sidewinder-tmp"}
P

mkdir "$work/k8s"
check "the plain manifests are what it renders" bash -c "deploy/k8s/render '$work/k8s' && cd deploy/k8s && for f in *.yaml; do diff -u \"\$f\" '$work/k8s/'\"\$f\" || exit 1; done"
check "it makes a package" "$helm" package "$chart" --destination "$work"
# The commands of docs/operations.md that need no cluster to be tried.
python3 deploy/examples/page.py docs/operations.md "A sidecar in Kubernetes" "sh helm" |
    sed "s#^helm upgrade --install \(.*\)#$helm template \1#; s#^helm #$helm #" >"$work/commands"
check "the commands of docs/operations.md render" sh -e "$work/commands"
kubectl=$(command -v kubectl || echo "$(dirname "$helm")/../kubectl/kubectl")
printf COOKIE >"$work/cookie"
python3 deploy/examples/page.py docs/operations.md "A sidecar in Kubernetes" "sh cluster" |
    sed "s#^kubectl \(.*\)=cookie\$#$kubectl \1=$work/cookie --dry-run=client --output=yaml#" >"$work/commands"
check "the Secret that it makes has the cookie" bash -c "sh -e '$work/commands' | grep -q 'cookie: $(base64 <"$work/cookie")'"
