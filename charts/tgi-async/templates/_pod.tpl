{{/*
A pod's template. Takes root, and role: server, or in a group of nodes leader or member. A member
says whether it lives, and nothing else: it takes no requests and has no metrics, so that nothing is to
find its port.
*/}}
{{- define "tgi-async.pod" -}}
{{- $root := .root -}}
{{- $member := eq .role "member" -}}
{{- $group := ne .role "server" -}}
metadata:
  labels:
    {{- include "tgi-async.labels" $root | nindent 4 }}
    {{- if not $member }}
    # By these the endpoint picker knows whose metrics it reads; the second name is the older one.
    llm-d.ai/engine-type: tgi-async
    inference.networking.k8s.io/engine-type: tgi-async
    {{- end }}
    {{- with $root.Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- $made := and $group (not $root.Values.clusterSecret.existingSecret) }}
  {{- if or $made $root.Values.hfToken.value $root.Values.apiKey.value $root.Values.podAnnotations }}
  annotations:
    {{- if $made }}
    # A new secret is for all nodes at once.
    checksum/cluster-secret: {{ include "tgi-async.clusterSecret" $root | sha256sum }}
    {{- end }}
    {{- if or $root.Values.hfToken.value $root.Values.apiKey.value }}
    checksum/secret: {{ printf "%s %s" $root.Values.hfToken.value $root.Values.apiKey.value | sha256sum }}
    {{- end }}
    {{- with $root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  {{- with $root.Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.serviceAccount.name }}
  serviceAccountName: {{ . }}
  {{- end }}
  automountServiceAccountToken: false
  # The variables of other services, such as PROMETHEUS_PORT, are names of the server's flags.
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add $root.Values.shutdown.delaySeconds $root.Values.shutdown.graceSeconds 15 }}
  {{- with $root.Values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $root.Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  containers:
    - name: server
      image: {{ include "tgi-async.image" $root | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      args:
        - --port
        - "8080"
        {{- with $root.Values.model.id }}
        - --model-id
        - {{ . | quote }}
        {{- end }}
        {{- with $root.Values.model.revision }}
        - --revision
        - {{ . | quote }}
        {{- end }}
        {{- range $root.Values.model.servedNames }}
        - --served-model-name
        - {{ . | quote }}
        {{- end }}
        {{- if gt (int $root.Values.gpu.count) 0 }}
        - --num-shard
        - {{ mul $root.Values.gpu.count $root.Values.nodes | quote }}
        {{- end }}
        - --shutdown-delay
        - {{ $root.Values.shutdown.delaySeconds | quote }}
        - --graceful-termination-timeout
        - {{ $root.Values.shutdown.graceSeconds | quote }}
        {{- range $root.Values.args }}
        - {{ . | quote }}
        {{- end }}
      env:
        - {name: HOME, value: /data}
        - {name: HF_HOME, value: /data}
        - {name: TGI_ASYNC_CACHE, value: /data/tgi-async}
        - {name: TMPDIR, value: /tmp}
        {{- if or $root.Values.hfToken.existingSecret $root.Values.hfToken.value }}
        - name: HF_TOKEN
          valueFrom:
            secretKeyRef:
              name: {{ $root.Values.hfToken.existingSecret | default (include "tgi-async.secretName" $root) }}
              key: {{ ternary $root.Values.hfToken.key "hf-token" (ne $root.Values.hfToken.existingSecret "") }}
        {{- end }}
        {{- if or $root.Values.apiKey.existingSecret $root.Values.apiKey.value }}
        - name: API_KEY
          valueFrom:
            secretKeyRef:
              name: {{ $root.Values.apiKey.existingSecret | default (include "tgi-async.secretName" $root) }}
              key: {{ ternary $root.Values.apiKey.key "api-key" (ne $root.Values.apiKey.existingSecret "") }}
        {{- end }}
        {{- if $group }}
        # Where the leader is, how many nodes there are and which one this is, LeaderWorkerSet adds:
        # LWS_LEADER_ADDRESS, LWS_GROUP_SIZE and LWS_WORKER_INDEX.
        - name: CLUSTER_SECRET
          valueFrom:
            secretKeyRef:
              name: {{ $root.Values.clusterSecret.existingSecret | default (include "tgi-async.clusterSecretName" $root) }}
              key: {{ ternary $root.Values.clusterSecret.key "secret" (ne $root.Values.clusterSecret.existingSecret "") }}
        {{- end }}
        {{- with $root.Values.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if not $member }}
      ports:
        - name: http
          containerPort: 8080
          protocol: TCP
      startupProbe:
        httpGet: {path: /health/ready, port: http}
        {{- toYaml $root.Values.probes.startup | nindent 8 }}
      readinessProbe:
        httpGet: {path: /health/ready, port: http}
        {{- toYaml $root.Values.probes.readiness | nindent 8 }}
      livenessProbe:
        # Not /health, which says 503 while a worker is replaced: the pod mends itself.
        httpGet: {path: /health/live, port: http}
        {{- toYaml $root.Values.probes.liveness | nindent 8 }}
      {{- else }}
      livenessProbe:
        # It answers while it prepares the model and waits for the leader, too.
        httpGet: {path: /health/live, port: 8080}
        {{- toYaml $root.Values.probes.liveness | nindent 8 }}
      {{- end }}
      resources:
        {{- $limits := $root.Values.resources.limits | default dict }}
        {{- if gt (int $root.Values.gpu.count) 0 }}
        {{- $limits = merge (dict $root.Values.gpu.resource $root.Values.gpu.count) $limits }}
        {{- end }}
        {{- with $root.Values.resources.requests }}
        requests:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        {{- with $limits }}
        limits:
          {{- toYaml . | nindent 10 }}
        {{- end }}
      {{- with $root.Values.securityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      volumeMounts:
        - {name: cache, mountPath: /data}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        {{- with $root.Values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: cache
      {{- if eq $root.Values.cache.type "pvc" }}
      persistentVolumeClaim:
        claimName: {{ include "tgi-async.claim" $root }}
      {{- else if $root.Values.cache.size }}
      emptyDir:
        sizeLimit: {{ $root.Values.cache.size }}
      {{- else }}
      emptyDir: {}
      {{- end }}
    - name: tmp
      emptyDir: {}
    - name: shm
      emptyDir:
        medium: Memory
        sizeLimit: {{ $root.Values.shm.sizeLimit }}
    {{- with $root.Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $root.Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $root.Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
