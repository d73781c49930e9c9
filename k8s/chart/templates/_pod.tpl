{{- define "llm.name" -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "llm.chosen" -}}
app.kubernetes.io/name: flex-rl-llm
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "llm.labels" -}}
{{ include "llm.chosen" . }}
app.kubernetes.io/component: serve-llm
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{/* The pod of one machine; a worker of a group takes part in the leader's model and answers nobody. */}}
{{- define "llm.pod" -}}
serviceAccountName: flex-rl-train
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ add .Values.drainSeconds 15 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- if or .Values.accelerator .Values.spot }}
nodeSelector:
  {{- with .Values.accelerator }}
  cloud.google.com/gke-accelerator: {{ . }}
  {{- end }}
  {{- if .Values.spot }}
  cloud.google.com/gke-spot: "true"
  {{- end }}
{{- end }}
{{- if or .Values.gpus .Values.spot }}
tolerations:
  {{- if .Values.gpus }}
  - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
  {{- end }}
  {{- if .Values.spot }}
  - {key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}
  {{- end }}
{{- end }}
containers:
  - name: llm
    image: {{ .Values.image }}
    workingDir: /app
    command: [python, -u, serve_llm.py]
    args:
      - --model={{ .Values.model.path }}
      - --host=0.0.0.0
      - --port={{ .Values.port }}
      - --sharding={{ .Values.sharding }}
      - --gpus={{ .Values.gpus }}
      - --drain-seconds={{ .Values.drainSeconds }}
      {{- if .Values.apiKeysSecret }}
      - --api-keys=/etc/flex-rl/keys
      {{- end }}
    env:
      - {name: HOME, value: /tmp}
      - {name: HF_HOME, value: /tmp/huggingface}
      - {name: HF_HUB_OFFLINE, value: "1"}
    ports: [{name: http, containerPort: {{ .Values.port }}}]
    resources:
      requests: {cpu: {{ .Values.cpu | quote }}, memory: {{ .Values.memory }}, ephemeral-storage: 2Gi}
      limits:
        memory: {{ .Values.memory }}
        {{- if .Values.gpus }}
        nvidia.com/gpu: {{ .Values.gpus | quote }}
        {{- end }}
    securityContext:
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      capabilities: {drop: [ALL]}
    {{- if .answers }}
    # weights may take minutes: until then nobody asks whether it lives
    startupProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 10, failureThreshold: {{ div (add .Values.startSeconds 9) 10 }}}
    # weights on the GPUs, warmed up, not draining
    readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 5, timeoutSeconds: 3}
    livenessProbe: {httpGet: {path: /healthz, port: http}, periodSeconds: 20, timeoutSeconds: 5, failureThreshold: 3}
    # the endpoint is taken away meanwhile
    lifecycle: {preStop: {exec: {command: [sleep, "5"]}}}
    {{- end }}
    volumeMounts:
      - {name: models, mountPath: /models, readOnly: true}
      - {name: scratch, mountPath: /tmp}
      - {name: shared-memory, mountPath: /dev/shm}
      {{- if .Values.apiKeysSecret }}
      - {name: keys, mountPath: /etc/flex-rl, readOnly: true}
      {{- end }}
volumes:
  - {name: models, persistentVolumeClaim: {claimName: {{ .Values.model.claim }}, readOnly: true}}
  - {name: scratch, emptyDir: {sizeLimit: 2Gi}}
  - {name: shared-memory, emptyDir: {medium: Memory, sizeLimit: {{ .Values.sharedMemory }}}}
  {{- if .Values.apiKeysSecret }}
  - {name: keys, secret: {secretName: {{ .Values.apiKeysSecret }}, items: [{key: keys, path: keys}], defaultMode: 288}}
  {{- end }}
{{- end }}
