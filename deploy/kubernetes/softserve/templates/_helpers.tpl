{{- define "softserve.name" -}}
{{- if contains "softserve" .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-softserve" (.Release.Name | trunc 40 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "softserve.selector" -}}
app.kubernetes.io/name: softserve
app.kubernetes.io/instance: {{ .Release.Name | trunc 63 }}
{{- end -}}

{{- /* Of an object: a list of the root, what its name ends with, and labels besides. */ -}}
{{- define "softserve.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "softserve.name" $root }}{{ index . 1 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- merge (include "softserve.labels" $root | fromYaml) (index . 2) | toYaml | nindent 2 }}
{{- end -}}

{{- define "softserve.labels" -}}
{{ include "softserve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end -}}

{{- /* A value of a setting as the environment has it: whole numbers without an exponent, and several
values quoted as in a shell. */ -}}
{{- define "softserve.setting" -}}
{{- if kindIs "slice" . -}}
{{- range $index, $each := . }}{{ if $index }} {{ end }}'{{ $each | replace "'" "'\"'\"'" }}'{{ end -}}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- define "softserve.query" -}}
{{- $query := printf "sum(softserve_sequences_in_flight{namespace=%q, app_kubernetes_io_instance=%q})" .Release.Namespace .Release.Name -}}
{{- .Values.autoscaling.keda.query | default $query -}}
{{- end -}}

{{- define "softserve.scaleDown" -}}
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownStabilizationSeconds }}
  policies:
    - {type: Pods, value: 1, periodSeconds: 60}
{{- end -}}

{{- /* What would start and not do what was meant. */ -}}
{{- define "softserve.refuse" -}}
{{- $values := .Values -}}
{{- if not (or $values.keys.secret $values.keys.allowAnonymous) -}}
{{- fail "keys.secret: name a Secret with keys.json, or set keys.allowAnonymous to let whoever comes generate" -}}
{{- end -}}
{{- if and $values.cache.claim $values.cache.create -}}
{{- fail "cache: give the claim that there is, or set create, not both" -}}
{{- end -}}
{{- if and $values.origin.credentialsSecret (not $values.origin.url) -}}
{{- fail "origin.credentialsSecret is for an origin: set origin.url" -}}
{{- end -}}
{{- if and $values.limitThreads (not (dig "limits" "cpu" "" $values.resources)) -}}
{{- fail "limitThreads counts the threads by resources.limits.cpu: set that, or limitThreads to false" -}}
{{- end -}}
{{- if and (eq $values.autoscaling.kind "keda") (not $values.autoscaling.keda.serverAddress) -}}
{{- fail "autoscaling.keda.serverAddress: give the address of Prometheus" -}}
{{- end -}}
{{- if gt (int $values.autoscaling.minReplicas) (int $values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling: minReplicas is more than maxReplicas" -}}
{{- end -}}
{{- $asksForKeys := and $values.keys.secret (not $values.metrics.open) -}}
{{- if and $values.metrics.podMonitor.enabled $asksForKeys (not $values.metrics.keySecret) -}}
{{- fail "metrics: name a keySecret with an operator's key for Prometheus, or set open" -}}
{{- end -}}
{{- if $values.inferencePool.enabled -}}
{{- if not $values.inferencePool.endpointPicker.name -}}
{{- fail "inferencePool.endpointPicker.name: name the Service of the endpoint picker" -}}
{{- end -}}
{{- if $asksForKeys -}}
{{- fail "inferencePool: an endpoint picker reads /metrics without a key: set metrics.open" -}}
{{- end -}}
{{- end -}}
{{- end -}}
