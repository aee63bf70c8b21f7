{{- define "image-volume-worker.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "image-volume-worker.wholeName" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains (include "image-volume-worker.name" .) .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "image-volume-worker.name" .) -}}
{{- end -}}
{{- end -}}

{{/* What is too long is refused, see check: names of jobs have 63 letters at most, a CronJob's 52. Two releases whose names
     were cut to the same would share objects */}}
{{- define "image-volume-worker.fullname" -}}
{{- include "image-volume-worker.wholeName" . | trunc 43 | trimSuffix "-" -}}
{{- end -}}

{{- define "image-volume-worker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "image-volume-worker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Of the daemon's pods only: a job's must get no traffic and no budget */}}
{{- define "image-volume-worker.workerLabels" -}}
{{ include "image-volume-worker.selectorLabels" . }}
app.kubernetes.io/component: worker
{{- end -}}

{{- define "image-volume-worker.labels" -}}
{{ include "image-volume-worker.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "image-volume-worker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "image-volume-worker.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "image-volume-worker.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* "true" if jobs wait in the memory of one process. What an existing Secret holds is not known here */}}
{{- define "image-volume-worker.inMemory" -}}
{{- with .Values.secrets.workUrl -}}
{{- if and (not .existingSecret) (or (not .value) (hasPrefix "memory:" .value)) -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* Seconds until a pod is killed: more than the program takes to drain, which is 30 unless it is told otherwise */}}
{{- define "image-volume-worker.drain" -}}
{{- $drain := (.Values.config.work | default dict).drain_timeout -}}
{{- if kindIs "invalid" $drain -}}30{{- else -}}{{- ceil $drain | int -}}{{- end -}}
{{- end -}}
{{- define "image-volume-worker.grace" -}}
{{- $given := .Values.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $given -}}{{- add (include "image-volume-worker.drain" .) 30 -}}{{- else -}}{{- int $given -}}{{- end -}}
{{- end -}}

{{/* What the schema cannot tell, all faults at once */}}
{{- define "image-volume-worker.check" -}}
{{- $faults := list -}}
{{- $memory := include "image-volume-worker.inMemory" . -}}
{{- range $name, $secret := .Values.secrets -}}
{{- if and $secret.value $secret.existingSecret -}}
{{- $faults = append $faults (printf "secrets.%s: either value or existingSecret, not both" $name) -}}
{{- end -}}
{{- end -}}
{{- if not .Values.targets -}}
{{- $faults = append $faults "targets: name at least one, for instance --set targets.fast.volume_type=ssd" -}}
{{- end -}}
{{- range $option := list "volume_type" "glance_store" -}}
{{- $taken := dict -}}
{{- range $name, $target := $.Values.targets -}}
{{- with index $target $option -}}
{{- if hasKey $taken . -}}
{{- $faults = append $faults (printf "targets.%s.%s: %s is that of targets.%s too" $name $option . (get $taken .)) -}}
{{- end -}}
{{- $_ := set $taken . $name -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $target := .Values.targets -}}
{{- if not $target.volume_type -}}
{{- $faults = append $faults (printf "targets.%s.volume_type is missing" $name) -}}
{{- end -}}
{{- $strategy := $target.strategy | default "auto" -}}
{{- if and (without ($target.disk_formats | default list) "raw") (not (has $strategy (list "auto" "cache"))) -}}
{{- $faults = append $faults (printf "targets.%s.disk_formats: Cinder clones nothing but raw with strategy %s" $name $strategy) -}}
{{- end -}}
{{- end -}}
{{- with .Values.secrets.transportUrls -}}
{{- if not (or .value .existingSecret) -}}
{{- $faults = append $faults "secrets.transportUrls: which broker do Glance and Cinder publish to? Set value or existingSecret" -}}
{{- end -}}
{{- end -}}
{{- range .Values.secrets.transportUrls.value -}}
{{- if not (regexMatch "^[a-z][a-z0-9+]*://" .) -}}
{{- $faults = append $faults "secrets.transportUrls.value: each is rabbit://USER:PASSWORD@HOST:5672/VHOST" -}}
{{- else if hasPrefix "http" . -}}
{{- $faults = append $faults "secrets.transportUrls.value: http is not what services publish by: rabbit://USER:PASSWORD@HOST:5672/VHOST" -}}
{{- end -}}
{{- end -}}
{{- $commands := list "resync" "replay" "doctor" "status" "explain" "dead-letters" -}}
{{- if and .Values.cronJob.enabled (not (has (first .Values.cronJob.args) $commands)) -}}
{{- $faults = append $faults (printf "cronJob.args: begins with one of %s" (join ", " $commands)) -}}
{{- end -}}
{{- with .Values.secrets.clouds -}}
{{- if not (or .value .existingSecret $.Values.extraEnv $.Values.extraEnvFrom $.Values.extraVolumes) -}}
{{- $faults = append $faults "secrets.clouds: no login; set value or existingSecret, or OS_* variables by extraEnv or extraEnvFrom" -}}
{{- end -}}
{{- end -}}
{{- if and $memory (gt (int .Values.replicaCount) 1) -}}
{{- $faults = append $faults (printf "replicaCount: %d workers cannot share lanes in memory (memory://): set secrets.workUrl to a vhost of RabbitMQ, or replicaCount to 1" (int .Values.replicaCount)) -}}
{{- end -}}
{{- range $name := list "resync" "replay" -}}
{{- if and $memory (index $.Values.backfill $name).enabled -}}
{{- $faults = append $faults (printf "backfill.%s: there are no lanes to put its work into (memory://): set secrets.workUrl to a vhost of RabbitMQ" $name) -}}
{{- end -}}
{{- end -}}
{{- if and $memory .Values.cronJob.enabled (or (has "resync" .Values.cronJob.args) (has "replay" .Values.cronJob.args)) -}}
{{- $faults = append $faults "cronJob: there are no lanes to put its work into (memory://): set secrets.workUrl to a vhost of RabbitMQ" -}}
{{- end -}}
{{- with .Values.backfill.replay -}}
{{- if and .enabled (not .existingClaim) (not $.Values.extraVolumes) -}}
{{- $faults = append $faults "backfill.replay.existingClaim: where are the recorded notifications?" -}}
{{- end -}}
{{- end -}}
{{- with .Values.networkPolicy }}
{{- if and .enabled .egress.enabled (not .egress.rules) -}}
{{- $faults = append $faults "networkPolicy.egress.rules: with none a worker reaches neither broker nor cloud" -}}
{{- end -}}
{{- end -}}
{{- if le (include "image-volume-worker.grace" . | int) (include "image-volume-worker.drain" . | int) -}}
{{- $faults = append $faults "terminationGracePeriodSeconds: has to be more than config.work.drain_timeout (30 unless set), or jobs in progress are killed" -}}
{{- end -}}
{{- range $label := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" -}}
{{- if hasKey $.Values.podLabels $label -}}
{{- $faults = append $faults (printf "podLabels: %s is the chart's own; pods are found by it" $label) -}}
{{- end -}}
{{- end -}}
{{- with .Values.updateStrategy -}}
{{- $none := list "0" "0%" -}}
{{- if and (eq .type "RollingUpdate") (has (toString .rollingUpdate.maxSurge) $none) (has (toString .rollingUpdate.maxUnavailable) $none) -}}
{{- $faults = append $faults "updateStrategy.rollingUpdate: with maxSurge and maxUnavailable 0 no pod can ever be replaced" -}}
{{- end -}}
{{- end -}}
{{- with .Values.secrets.clouds.value -}}
{{- $entry := ($.Values.config.cloud | default dict).name -}}
{{- $clouds := (fromYaml .).clouds -}}
{{- if not (kindIs "map" $clouds) -}}
{{- $faults = append $faults "secrets.clouds.value: not the text of a clouds.yaml" -}}
{{- else if and $entry (not (hasKey $clouds $entry)) -}}
{{- $faults = append $faults (printf "secrets.clouds.value: has no entry %s (config.cloud.name), only %s" $entry (keys $clouds | sortAlpha | join ", ")) -}}
{{- end -}}
{{- end -}}
{{- if gt (include "image-volume-worker.wholeName" . | len) 43 -}}
{{- $faults = append $faults (printf "fullnameOverride: give a name of at most 43 letters, %s is too long for what is put behind it" (include "image-volume-worker.wholeName" .)) -}}
{{- end -}}
{{- if $faults -}}
{{- fail (printf "\n  %s" (join "\n  " $faults)) -}}
{{- end -}}
{{- end -}}

{{/* One option as oslo.config reads it. $ would begin a reference; numbers by toJson, as 1e+06 is no integer there */}}
{{- define "image-volume-worker.option" -}}
{{- $text := "" -}}
{{- if kindIs "slice" . -}}{{- $text = join "," . -}}
{{- else if kindIs "string" . -}}{{- $text = . -}}
{{- else -}}{{- $text = toJson . -}}{{- end -}}
{{- $text | replace "$" "$$" -}}
{{- end -}}

{{- define "image-volume-worker.options" -}}
{{- range $name, $value := . }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }} = {{ include "image-volume-worker.option" $value }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "image-volume-worker.config" -}}
# Options with passwords come from the environment
{{- range $group := list "DEFAULT" "notifications" "work" "cloud" "prewarm" "uploads" "reclaim" "resync" "probes" "log" "tracing" }}
{{- $options := index $.Values.config $group | default dict }}
{{- if eq $group "prewarm" }}
{{- $options = merge (dict "targets" (keys $.Values.targets | sortAlpha)) $options }}
{{- else if eq $group "probes" }}
{{- $options = merge (dict "bind" (printf "0.0.0.0:%d" (int $.Values.containerPort))) $options }}
{{- end }}
{{- if $options }}

[{{ $group }}]
{{- include "image-volume-worker.options" $options }}
{{- end }}
{{- end }}
{{- range $name, $options := .Values.targets }}

[target:{{ $name }}]
{{- include "image-volume-worker.options" $options }}
{{- end }}
{{- end -}}

{{/* The Secret and key of one of secrets */}}
{{- define "image-volume-worker.secretRef" -}}
{{- $secret := index .root.Values.secrets .which -}}
name: {{ $secret.existingSecret | default (include "image-volume-worker.fullname" .root) }}
key: {{ empty $secret.existingSecret | ternary .key $secret.existingSecretKey }}
{{- end -}}

{{- define "image-volume-worker.env" -}}
{{- $root := . -}}
{{- range list (list "OS_NOTIFICATIONS__TRANSPORT_URLS" "transportUrls" "transport_urls") (list "OS_WORK__URL" "workUrl" "work_url") (list "OS_NOTIFICATIONS__MANAGEMENT_URLS" "managementUrls" "management_urls") }}
{{- $secret := index $root.Values.secrets (index . 1) }}
{{- if or $secret.value $secret.existingSecret }}
- name: {{ index . 0 }}
  valueFrom:
    secretKeyRef:
      {{- include "image-volume-worker.secretRef" (dict "root" $root "which" (index . 1) "key" (index . 2)) | nindent 6 }}
{{- end }}
{{- end }}
{{- with .Values.secrets.clouds }}
{{- if or .value .existingSecret }}
- name: OS_CLIENT_CONFIG_FILE
  value: /etc/openstack/clouds.yaml
{{- end }}
{{- end }}
- name: PYTHONUNBUFFERED
  value: "1"
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Rolled when what they read at start has changed */}}
{{- define "image-volume-worker.checksums" -}}
checksum/config: {{ include (print .Template.BasePath "/configmap.yaml") . | sha256sum }}
checksum/secret: {{ include (print .Template.BasePath "/secret.yaml") . | sha256sum }}
{{- end -}}

{{/* A pod that runs one command. root; component; args; resources; more: probes and ports; claim; restart */}}
{{- define "image-volume-worker.podSpec" -}}
{{- $root := .root -}}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
serviceAccountName: {{ include "image-volume-worker.serviceAccountName" $root }}
automountServiceAccountToken: false
# Kubernetes would set variables for services that look like options (OS_...)
enableServiceLinks: false
{{- with .restart }}
restartPolicy: {{ . }}
{{- end }}
terminationGracePeriodSeconds: {{ include "image-volume-worker.grace" $root }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $root.Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
containers:
  - name: {{ .component }}
    image: {{ include "image-volume-worker.image" $root | quote }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    command: [image-volume-worker]
    args:
      - --config-file
      - /etc/image-volume-worker/image-volume-worker.conf
      {{- toYaml .args | nindent 6 }}
    env:
      {{- include "image-volume-worker.env" $root | trim | nindent 6 }}
    {{- with $root.Values.extraEnvFrom }}
    envFrom:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .more }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .resources | default $root.Values.resources }}
    resources:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $root.Values.securityContext }}
    securityContext:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    volumeMounts:
      - name: config
        mountPath: /etc/image-volume-worker
        readOnly: true
      {{- with $root.Values.secrets.clouds }}
      {{- if or .value .existingSecret }}
      - name: clouds
        mountPath: /etc/openstack
        readOnly: true
      {{- end }}
      {{- end }}
      - name: tmp
        mountPath: /tmp
      {{- if .claim }}
      - name: captures
        mountPath: /captures
        readOnly: true
      {{- end }}
      {{- with $root.Values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  - name: config
    configMap:
      name: {{ include "image-volume-worker.fullname" $root }}
  {{- with $root.Values.secrets.clouds }}
  {{- if or .value .existingSecret }}
  {{- $ref := include "image-volume-worker.secretRef" (dict "root" $root "which" "clouds" "key" "clouds.yaml") | fromYaml }}
  - name: clouds
    secret:
      secretName: {{ $ref.name }}
      # The program's group is fsGroup
      defaultMode: 0440
      items:
        - key: {{ $ref.key }}
          path: clouds.yaml
  {{- end }}
  {{- end }}
  - name: tmp
    emptyDir:
      sizeLimit: 64Mi
  {{- with .claim }}
  - name: captures
    persistentVolumeClaim:
      claimName: {{ . }}
      readOnly: true
  {{- end }}
  {{- with $root.Values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* A Job's spec for one command. root, component, args, resources, claim, limits */}}
{{- define "image-volume-worker.jobSpec" -}}
{{- $root := .root -}}
backoffLimit: {{ int .limits.backoffLimit }}
{{- range $name := list "ttlSecondsAfterFinished" "activeDeadlineSeconds" }}
{{- $seconds := index $.limits $name }}
{{- if not (kindIs "invalid" $seconds) }}
{{ $name }}: {{ int $seconds }}
{{- end }}
{{- end }}
# Exit status 2 means wrong configuration: a retry does not help
podFailurePolicy:
  rules:
    - action: FailJob
      onExitCodes:
        containerName: {{ .component }}
        operator: In
        values: [2]
template:
  metadata:
    labels:
      {{- include "image-volume-worker.selectorLabels" $root | nindent 6 }}
      app.kubernetes.io/component: {{ .component }}
      {{- with $root.Values.podLabels }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
    annotations:
      {{- include "image-volume-worker.checksums" $root | nindent 6 }}
      {{- with $root.Values.podAnnotations }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
  spec:
    {{- include "image-volume-worker.podSpec" (merge (dict "restart" "Never") .) | trim | nindent 4 }}
{{- end -}}

{{/* What the daemon has more than a job */}}
{{- define "image-volume-worker.probes" -}}
ports:
  - name: http
    containerPort: {{ int .Values.containerPort }}
    protocol: TCP
{{- range $name, $path := dict "startupProbe" "/healthz" "livenessProbe" "/healthz" "readinessProbe" "/readyz" }}
{{ $name }}:
  httpGet:
    path: {{ $path }}
    port: http
  {{- toYaml (index $.Values $name) | nindent 2 }}
{{- end }}
{{- end -}}
