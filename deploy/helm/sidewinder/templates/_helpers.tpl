{{- define "sidewinder.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{- define "sidewinder.fullname" -}}
{{- if contains (include "sidewinder.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "sidewinder.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end }}

{{- define "sidewinder.selector" -}}
app.kubernetes.io/name: {{ include "sidewinder.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sidewinder.labels" -}}
{{ include "sidewinder.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "sidewinder.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "sidewinder.cookieSecret" -}}
{{- if .Values.cookie.existingSecret -}}
{{ .Values.cookie.existingSecret }}
{{- else -}}
{{- if not .Values.cookie.value }}{{ fail "cookie: give existingSecret or value" }}{{ end -}}
{{ include "sidewinder.fullname" . }}-cookie
{{- end -}}
{{- end }}

{{- define "sidewinder.tlsSecret" -}}
{{- if .Values.tls.existingSecret -}}
{{ .Values.tls.existingSecret }}
{{- else if .Values.tls.issuer -}}
{{ include "sidewinder.fullname" . }}-tls
{{- end -}}
{{- end }}

{{- define "sidewinder.adminPort" -}}
{{ .Values.settings.admin | toString | splitList ":" | last }}
{{- end }}

{{/*
The file of settings. Takes a dict: root, and sidecar (true for the settings of one).
*/}}
{{- define "sidewinder.settings" -}}
{{- $values := .root.Values -}}
{{- $all := deepCopy $values.settings -}}
{{- if .sidecar }}{{- $all = mergeOverwrite $all (deepCopy $values.sidecar.settings) }}{{- end -}}
{{- $_ := set $all "cookie-file" (printf "/run/secrets/sidewinder/%s" $values.cookie.key) -}}
{{- if include "sidewinder.tlsSecret" .root -}}
{{- $_ := set $all "tls-cert" "/run/secrets/sidewinder-tls/tls.crt" -}}
{{- $_ := set $all "tls-key" "/run/secrets/sidewinder-tls/tls.key" -}}
{{- $_ := set $all "tls-ca" "/run/secrets/sidewinder-tls/ca.crt" -}}
{{- if and $values.tls.issuer (contains "{pod_ip}" $all.name) (index $all "tls-check-host") }}
{{- fail "tls: a certificate of an issuer is for names, not addresses: set settings.name to py@{pod_name}.SERVICE.{pod_namespace}.svc.DOMAIN" }}
{{- end -}}
{{- end -}}
{{- if and $values.web.enabled (not .sidecar) }}
{{- if not (or $all.serve $all.mount) }}{{ fail "web: settings.serve or settings.mount has to name an application" }}{{ end }}
{{- if $all.bind }}{{ fail "web: settings.bind is made from web.port: leave it empty" }}{{ end }}
{{- $_ := set $all "bind" (list (printf ":%d" (int $values.web.port))) }}
{{- end -}}
{{- if le (int $values.terminationGracePeriodSeconds) (int (index $all "drain-timeout")) }}
{{- fail "terminationGracePeriodSeconds has to be longer than settings.drain-timeout" }}
{{- end -}}
{{- $given := dict -}}
{{- range $key, $value := $all }}
{{- if not (or (kindIs "invalid" $value) (eq (toString $value) "") (eq (toString $value) "[]")) }}
{{- $_ := set $given $key $value }}
{{- end }}
{{- end -}}
{{ $given | toPrettyJson }}
{{- end }}

{{/*
The node as a container. Takes a dict: root, and sidecar (true beside a BEAM). It has no preStop: it drains on SIGTERM, which
comes to a native sidecar after the application has ended.
*/}}
{{- define "sidewinder.container" -}}
{{- $values := .root.Values -}}
name: sidewinder
image: {{ include "sidewinder.image" .root }}
imagePullPolicy: {{ $values.image.pullPolicy }}
{{- if and .sidecar $values.sidecar.native }}
restartPolicy: Always
{{- end }}
args: ["--config", "/etc/sidewinder/{{ if .sidecar }}sidecar{{ else }}worker{{ end }}.json"]
env:
{{- include "sidewinder.podVariables" . | nindent 2 }}
{{- with $values.env }}
{{- toYaml . | nindent 2 }}
{{- end }}
ports:
  - {name: dist, containerPort: {{ index $values.settings "dist-port" }}}
{{- if not .sidecar }}
  - {name: epmd, containerPort: 4369}
{{- if $values.web.enabled }}
  - {name: web, containerPort: {{ $values.web.port }}}
{{- end }}
{{- end }}
  - {name: admin, containerPort: {{ include "sidewinder.adminPort" .root }}}
# Settings were right, Python is up, the node listens; a BEAM is not waited for.
startupProbe:
  httpGet: {path: /startupz, port: admin}
  periodSeconds: 1
  failureThreshold: 60
# The thread that serves the links turns, whatever Python does.
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
# Peers can reach it, Python answers, it does not drain.
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 2
  timeoutSeconds: 2
resources:
{{- toYaml $values.resources | nindent 2 }}
securityContext:
{{- include "sidewinder.securityContext" . | nindent 2 }}
volumeMounts:
  - {name: sidewinder-settings, mountPath: /etc/sidewinder, readOnly: true}
  - {name: sidewinder-cookie, mountPath: /run/secrets/sidewinder, readOnly: true}
{{- if include "sidewinder.tlsSecret" .root }}
  - {name: sidewinder-tls, mountPath: /run/secrets/sidewinder-tls, readOnly: true}
{{- end }}
  - {name: sidewinder-tmp, mountPath: /tmp}
{{- with $values.volumeMounts }}
{{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
The same as an entry of initContainers, or of containers when sidecar.native is false. In the pod of a chart of yours, which has
this one as a dependency named sidewinder:

  initContainers:
    {{- include "sidewinder.sidecar" .Subcharts.sidewinder | nindent 4 }}
  volumes:
    {{- include "sidewinder.volumes" .Subcharts.sidewinder | nindent 4 }}
*/}}
{{- define "sidewinder.sidecar" -}}
- {{ include "sidewinder.container" (dict "root" . "sidecar" true) | indent 2 | trim }}
{{- end }}

{{- define "sidewinder.podVariables" -}}
- {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
- {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
- {name: POD_NAMESPACE, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
{{- end }}

{{- define "sidewinder.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "sidewinder.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "sidewinder.volumes" -}}
- name: sidewinder-settings
  configMap: {name: {{ include "sidewinder.fullname" . }}}
- name: sidewinder-cookie
  secret: {secretName: {{ include "sidewinder.cookieSecret" . }}, defaultMode: 0440, optional: false}
{{- if include "sidewinder.tlsSecret" . }}
- name: sidewinder-tls
  secret: {secretName: {{ include "sidewinder.tlsSecret" . }}, defaultMode: 0440, optional: false}
{{- end }}
- name: sidewinder-tmp
  emptyDir: {sizeLimit: {{ .Values.tmp }}}
{{- with .Values.volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What worker and application pods have alike. */}}
{{- define "sidewinder.pod" -}}
terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
enableServiceLinks: false
automountServiceAccountToken: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
{{- include "sidewinder.podSecurityContext" . | nindent 2 }}
{{- end }}
