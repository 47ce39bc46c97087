{{- define "tgi-async.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "tgi-async.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tgi-async.labels" -}}
{{ include "tgi-async.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "tgi-async.image" -}}
{{- $kind := ternary "cuda" "cpu" (gt (int .Values.gpu.count) 0) -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $kind)) -}}
{{- end -}}

{{- define "tgi-async.claim" -}}
{{- .Values.cache.existingClaim | default (printf "%s-cache" (include "tgi-async.fullname" .)) -}}
{{- end -}}

{{- define "tgi-async.secretName" -}}
{{- include "tgi-async.fullname" . -}}
{{- end -}}

{{- define "tgi-async.epp" -}}
{{- .Values.inferencePool.endpointPicker.name | default (printf "%s-epp" (include "tgi-async.fullname" .)) -}}
{{- end -}}

{{/* What the schema cannot say, as it concerns several keys at once. */}}
{{- define "tgi-async.check" -}}
{{- $own := dict "--port" "the chart's" "-p" "the chart's" "--model-id" "model.id" "--revision" "model.revision" "--served-model-name" "model.servedNames" "--num-shard" "gpu.count" "--shutdown-delay" "shutdown.delaySeconds" "--graceful-termination-timeout" "shutdown.graceSeconds" "-g" "shutdown.graceSeconds" -}}
{{- range $flag := .Values.args -}}
{{- with index $own (first (splitList "=" $flag)) -}}
{{- fail (printf "args has %s, which is %s. Leave it out of args." $flag .) -}}
{{- end -}}
{{- end -}}
{{- range $name := list "hfToken" "apiKey" -}}
{{- $one := index $.Values $name -}}
{{- if and $one.existingSecret $one.value -}}
{{- fail (printf "%s.existingSecret and %s.value were both given; give one of them." $name $name) -}}
{{- end -}}
{{- end -}}
{{- $most := ternary (int .Values.replicaCount) (int .Values.autoscaling.maxReplicas) (eq .Values.autoscaling.type "none") -}}
{{- if and (eq .Values.cache.type "pvc") (not .Values.cache.existingClaim) (gt $most 1) (not (has "ReadWriteMany" .Values.cache.accessModes)) -}}
{{- fail (printf "cache.accessModes are %s, and up to %d pods share the volume. Give ReadWriteMany, cache.type emptyDir, or one pod." (join ", " .Values.cache.accessModes) $most) -}}
{{- end -}}
{{- if and (eq .Values.cache.type "pvc") (not .Values.cache.existingClaim) (not .Values.cache.size) -}}
{{- fail "cache.type is pvc and cache.size is empty. Give the size of the volume, such as 60Gi, or cache.existingClaim." -}}
{{- end -}}
{{- if and (ne .Values.autoscaling.type "none") (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail (printf "autoscaling.minReplicas must be at most autoscaling.maxReplicas. Given: %d and %d." (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.type "keda") (not .Values.autoscaling.keda.prometheusAddress) -}}
{{- fail "autoscaling.type is keda and autoscaling.keda.prometheusAddress is empty. Give the URL of Prometheus." -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "httpRoute.enabled is true and httpRoute.parentRefs is empty. Name the Gateway." -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) -}}
{{- fail "ingress.enabled is true and ingress.hosts is empty. Name a host." -}}
{{- end -}}
{{- $rolling := .Values.strategy.rollingUpdate | default dict -}}
{{- if and (eq .Values.strategy.type "RollingUpdate") (eq (toString $rolling.maxSurge) "0") (eq (toString $rolling.maxUnavailable) "0") -}}
{{- fail "strategy.rollingUpdate.maxSurge and maxUnavailable are both 0, so that no pod could be replaced. Give one of them 1." -}}
{{- end -}}
{{- end -}}
