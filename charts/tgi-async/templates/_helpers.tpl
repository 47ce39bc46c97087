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

{{/* The pods that take requests: in a group of nodes its leader, by a label of LeaderWorkerSet's. */}}
{{- define "tgi-async.serverLabels" -}}
{{ include "tgi-async.selectorLabels" . }}
{{- if gt (int .Values.nodes) 1 }}
leaderworkerset.sigs.k8s.io/worker-index: "0"
{{- end }}
{{- end -}}

{{/*
The Deployment, or the LeaderWorkerSet. The latter makes a headless Service of its own name, so that it
cannot have that of the chart's; and its name gets endings (-0-1, and a hash) in labels of 63 characters.
*/}}
{{- define "tgi-async.workloadName" -}}
{{- if gt (int .Values.nodes) 1 -}}
{{- printf "%s-nodes" (include "tgi-async.fullname" . | trunc 40 | trimSuffix "-") -}}
{{- else -}}
{{- include "tgi-async.fullname" . -}}
{{- end -}}
{{- end -}}

{{/* What is scaled. */}}
{{- define "tgi-async.workload" -}}
{{- $group := gt (int .Values.nodes) 1 -}}
apiVersion: {{ ternary "leaderworkerset.x-k8s.io/v1" "apps/v1" $group }}
kind: {{ ternary "LeaderWorkerSet" "Deployment" $group }}
name: {{ include "tgi-async.workloadName" . }}
{{- end -}}

{{- define "tgi-async.clusterSecretName" -}}
{{- printf "%s-cluster" (include "tgi-async.fullname" .) -}}
{{- end -}}

{{/* In base64: the one that is in the cluster, or a new one, the same in all of a rendering. */}}
{{- define "tgi-async.clusterSecret" -}}
{{- if not (hasKey .Values.clusterSecret "made") -}}
{{- $there := lookup "v1" "Secret" .Release.Namespace (include "tgi-async.clusterSecretName" .) -}}
{{- $_ := set .Values.clusterSecret "made" (dig "data" "secret" (randAlphaNum 64 | b64enc) $there) -}}
{{- end -}}
{{- .Values.clusterSecret.made -}}
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
{{- $own := dict "--port" "the chart's" "-p" "the chart's" "--model-id" "model.id" "--revision" "model.revision" "--served-model-name" "model.servedNames" "--num-shard" "gpu.count" "--nnodes" "nodes" "--node-rank" "LeaderWorkerSet's" "--master-addr" "LeaderWorkerSet's" "--cluster-secret-file" "clusterSecret" "--shutdown-delay" "shutdown.delaySeconds" "--graceful-termination-timeout" "shutdown.graceSeconds" "-g" "shutdown.graceSeconds" -}}
{{- range $flag := .Values.args -}}
{{- with index $own (first (splitList "=" $flag)) -}}
{{- fail (printf "args has %s, which is %s. Leave it out of args." $flag .) -}}
{{- end -}}
{{- end -}}
{{- if and (gt (int .Values.gpu.count) 0) (not .Values.model.id) -}}
{{- fail "gpu.count is above 0 and model.id is empty. Give a model: only the image for CPUs has one." -}}
{{- end -}}
{{- range $name := list "hfToken" "apiKey" -}}
{{- $one := index $.Values $name -}}
{{- if and $one.existingSecret $one.value -}}
{{- fail (printf "%s.existingSecret and %s.value were both given; give one of them." $name $name) -}}
{{- end -}}
{{- end -}}
{{- $most := ternary (int .Values.replicaCount) (int .Values.autoscaling.maxReplicas) (eq .Values.autoscaling.type "none") | mul .Values.nodes -}}
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
{{- if eq (int .Values.nodes) 1 -}}
{{- if .Values.clusterSecret.existingSecret -}}
{{- fail "clusterSecret.existingSecret was given and nodes is 1. Give nodes 2 or more, or leave it out: one node has no secret." -}}
{{- end -}}
{{- if .Values.exclusiveTopology -}}
{{- fail "exclusiveTopology was given and nodes is 1. Give nodes 2 or more, or affinity instead." -}}
{{- end -}}
{{- else if ne .Values.strategy.type "RollingUpdate" -}}
{{- fail (printf "strategy.type is %s and nodes is %d. A LeaderWorkerSet has RollingUpdate only; maxSurge 0 and maxUnavailable 1 need no further nodes." .Values.strategy.type (int .Values.nodes)) -}}
{{- end -}}
{{- if and (gt (int .Values.nodes) 1) .Values.podDisruptionBudget.enabled (contains "%" (toString .Values.podDisruptionBudget.maxUnavailable)) -}}
{{- fail (printf "podDisruptionBudget.maxUnavailable is %s and nodes is %d. Give a number of pods, each of which may be another group's." .Values.podDisruptionBudget.maxUnavailable (int .Values.nodes)) -}}
{{- end -}}
{{- $rolling := .Values.strategy.rollingUpdate | default dict -}}
{{- if and (eq .Values.strategy.type "RollingUpdate") (eq (toString $rolling.maxSurge) "0") (eq (toString $rolling.maxUnavailable) "0") -}}
{{- fail "strategy.rollingUpdate.maxSurge and maxUnavailable are both 0, so that no pod could be replaced. Give one of them 1." -}}
{{- end -}}
{{- end -}}
