{{/* Deployments of all components: one template, so that an option of one is an option of all. */}}

{{- define "imagegate.deployment" -}}
{{- $root := .root }}
{{- $values := .values }}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "imagegate.metadata" (dict "root" $root "name" (include "imagegate.named" .) "component" . "annotations" $values.annotations) | nindent 2 }}
spec:
  {{- if not $values.autoscaling.enabled }}
  replicas: {{ int $values.replicas }}
  {{- end }}
  revisionHistoryLimit: {{ int $values.revisionHistoryLimit }}
  minReadySeconds: {{ int $values.minReadySeconds }}
  strategy:
    {{- if $values.strategy }}
    {{- toYaml $values.strategy | nindent 4 }}
    {{- else if include "imagegate.singleNodeVolume" . }}
    # A second pod could wait for the volume on another node for ever.
    type: Recreate
    {{- else }}
    type: RollingUpdate
    rollingUpdate:
      maxSurge: 1
      maxUnavailable: 0
    {{- end }}
  selector:
    matchLabels:
      {{- include "imagegate.selectorLabels" . | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "imagegate.selectorLabels" . | nindent 8 }}
        {{- with $root.Values.commonLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- $annotations := mergeOverwrite (deepCopy ($root.Values.commonAnnotations | default dict)) ($values.podAnnotations | default dict) }}
      {{- if and $root.Values.rollOnConfigChange (include "imagegate.ownConfigMap" .) }}
      {{- $_ := set $annotations "checksum/config" (include "imagegate.configFile" . | sha256sum) }}
      {{- end }}
      {{- with $annotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "imagegate.serviceAccount" . }}
      automountServiceAccountToken: false
      # Variables of Services could be taken for the binary's own, which begin with IMAGEGATE_ too.
      enableServiceLinks: false
      {{- with include "imagegate.pullSecrets" $root | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds | default (include "imagegate.terminationSeconds" .) | int }}
      {{- with $values.podSecurityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $values.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      {{- with $values.schedulerName }}
      schedulerName: {{ . }}
      {{- end }}
      {{- with $values.dnsPolicy }}
      dnsPolicy: {{ . }}
      {{- end }}
      {{- with $values.dnsConfig }}
      dnsConfig:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.hostAliases }}
      hostAliases:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $values.affinity }}
      affinity:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with include "imagegate.topologySpread" . | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- $check := and $root.Values.configCheck.enabled (ne .role "shim") }}
      {{- if or $check $values.initContainers }}
      initContainers:
        {{- with $values.initContainers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- if $check }}
        {{- /* A worker of one's own may not know `check`. */}}
        {{- $own := ne $values.image.repository "" }}
        {{- $checker := ternary (dict "root" $root "values" dict) . $own }}
        - name: check-config
          image: {{ include "imagegate.image" $checker | quote }}
          imagePullPolicy: {{ include "imagegate.pullPolicy" $checker }}
          {{- with ternary list $values.command $own }}
          command:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          args: [check, /etc/imagegate/imagegate.yaml]
          {{- include "imagegate.env" . | nindent 10 }}
          {{- with $root.Values.configCheck.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- with $values.securityContext }}
          securityContext:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- include "imagegate.volumeMounts" . | nindent 10 }}
        {{- end }}
      {{- end }}
      containers:
        - name: imagegate
          image: {{ include "imagegate.image" . | quote }}
          imagePullPolicy: {{ include "imagegate.pullPolicy" . }}
          {{- with $values.command }}
          command:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          args:
            {{- if $values.args }}
            {{- toYaml $values.args | nindent 12 }}
            {{- else }}
            {{- include (printf "imagegate.%sArgs" .role) . | nindent 12 }}
            {{- end }}
            {{- with $values.extraArgs }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            {{- if eq .role "shim" }}
            - name: http
              containerPort: 8787
            {{- else }}
            - name: grpc
              containerPort: {{ ternary 50051 50061 (eq .role "router") }}
            {{- end }}
            - name: admin
              containerPort: 9090
          {{- include "imagegate.env" . | nindent 10 }}
          {{- /* Plain text on the admin port, so that probes need no certificate whatever tls.mode is. */}}
          startupProbe:
            {{- include "imagegate.probe" (dict "service" "liveness" "timing" $values.probes.startup) | nindent 12 }}
          readinessProbe:
            {{- include "imagegate.probe" (dict "service" "readiness" "timing" $values.probes.readiness) | nindent 12 }}
          livenessProbe:
            {{- include "imagegate.probe" (dict "service" "liveness" "timing" $values.probes.liveness) | nindent 12 }}
          {{- $lifecycle := deepCopy ($values.lifecycle | default dict) }}
          {{- if and $root.Values.drain.preStopSleep (gt (int $root.Values.drain.delaySeconds) 0) }}
          {{- $_ := set $lifecycle "preStop" (dict "sleep" (dict "seconds" (int $root.Values.drain.delaySeconds))) }}
          {{- end }}
          {{- with $lifecycle }}
          lifecycle:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- with $values.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- with $values.securityContext }}
          securityContext:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- include "imagegate.volumeMounts" . | nindent 10 }}
        {{- with $values.extraContainers }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      volumes:
        {{- include "imagegate.volumes" . | trim | nindent 8 }}
{{- end }}

{{/* Whether a component's file comes from this chart. */}}
{{- define "imagegate.ownConfigMap" -}}
{{- if eq .role "router" -}}{{- if not .root.Values.existingConfigMap -}}true{{- end -}}
{{- else if eq .role "worker" -}}{{- if not .values.existingConfigMap -}}true{{- end -}}{{- end -}}
{{- end }}

{{- define "imagegate.probe" -}}
grpc:
  port: 9090
  service: {{ .service }}
{{- range $key, $value := .timing }}
{{ $key }}: {{ int $value }}
{{- end }}
{{- end }}

{{/*
Its own constraints, which get the component's selector unless they have one; else evenly over zones and nodes, each
revision by itself, as the old pods of a rollout do not stay.
*/}}
{{- define "imagegate.topologySpread" -}}
{{- $selector := dict "matchLabels" (include "imagegate.selectorLabels" . | fromYaml) -}}
{{- $constraints := list -}}
{{- range .values.topologySpreadConstraints -}}
{{- $constraints = append $constraints (ternary . (set (deepCopy .) "labelSelector" $selector) (hasKey . "labelSelector")) -}}
{{- end -}}
{{- if and (not $constraints) .values.defaultTopologySpread -}}
{{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" -}}
{{- $constraints = append $constraints (dict "maxSkew" 1 "topologyKey" . "whenUnsatisfiable" "ScheduleAnyway" "labelSelector" $selector "matchLabelKeys" (list "pod-template-hash")) -}}
{{- end -}}
{{- end -}}
{{- with $constraints -}}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end }}

{{- define "imagegate.routerArgs" -}}
- router
- --config
- /etc/imagegate/imagegate.yaml
{{- end }}

{{- define "imagegate.workerArgs" -}}
{{- $host := include "imagegate.listenHost" .root -}}
- worker
- --provider
- {{ .values.provider }}
- --listen
- {{ printf "%s:50061" $host | quote }}
- --admin
- {{ printf "%s:9090" $host | quote }}
- --config
- /etc/imagegate/imagegate.yaml
{{- end }}

{{- define "imagegate.shimArgs" -}}
{{- $host := include "imagegate.listenHost" .root -}}
- shim
- --router
- {{ include "imagegate.routerUri" .root }}
- --listen
- {{ printf "%s:8787" $host | quote }}
- --admin
- {{ printf "%s:9090" $host | quote }}
- --data-dir
- /data
{{- with .root.Values.images }}
{{- if .url }}
- --images-url
- {{ .url | quote }}
{{- with .region }}
- --images-region
- {{ . | quote }}
{{- end }}
{{- with .endpoint }}
- --images-endpoint
- {{ . | quote }}
{{- end }}
{{- if .allowHttp }}
- --images-allow-http
{{- end }}
{{- if .virtualHosted }}
- --images-virtual-hosted
{{- end }}
{{- end }}
{{- end }}
- --image-lifetime-s
- {{ int .values.imageLifetimeSeconds | quote }}
- --max-body-bytes
- {{ int64 .root.Values.maxBodyBytes | quote }}
- --shutdown-delay-s
- {{ include "imagegate.shutdownDelaySeconds" .root | quote }}
- --shutdown-grace-s
- {{ include "imagegate.graceSeconds" . | quote }}
{{- with .values.publicUrl }}
- --public-url
- {{ . | quote }}
{{- end }}
{{- include "imagegate.tlsArgs" .root }}
{{- end }}

{{- define "imagegate.tlsArgs" -}}
{{- if ne (include "imagegate.tlsMode" .) "off" }}
- --tls-certificate
- /etc/imagegate/tls/tls.crt
- --tls-key
- /etc/imagegate/tls/tls.key
- --tls-ca
- /etc/imagegate/tls/ca.crt
{{- end }}
{{- end }}

{{/* env and envFrom. extraEnv stands last: of two with one name the last holds. */}}
{{- define "imagegate.env" -}}
env:
  - name: IMAGEGATE_LOG_FORMAT
    value: {{ .root.Values.logging.format }}
  - name: RUST_LOG
    value: {{ .root.Values.logging.level | quote }}
  {{- if include "imagegate.hasCaBundle" .root }}
  - name: SSL_CERT_FILE
    value: /etc/imagegate/ca-bundle/ca.crt
  {{- if not .root.Values.caBundle.replace }}
  # With the file alone the image's own authorities would not be read.
  - name: SSL_CERT_DIR
    value: /etc/ssl/certs
  {{- end }}
  {{- end }}
  {{- range $name, $credential := .values.credentials }}
  {{- if and $credential (not $credential.asFile) }}
  - name: {{ $name }}
    valueFrom:
      secretKeyRef:
        name: {{ $credential.existingSecret }}
        key: {{ $credential.key }}
  {{- end }}
  {{- end }}
  {{- if and (eq .role "router") .root.Values.redis.existingSecret }}
  - name: REDIS_URL
    valueFrom:
      secretKeyRef:
        name: {{ .root.Values.redis.existingSecret }}
        key: {{ .root.Values.redis.key }}
  {{- end }}
  {{- if and (eq .role "router") .root.Values.store.existingSecret }}
  - name: STORE_URL
    valueFrom:
      secretKeyRef:
        name: {{ .root.Values.store.existingSecret }}
        key: {{ .root.Values.store.urlKey }}
  - name: VAULT_KEY
    valueFrom:
      secretKeyRef:
        name: {{ .root.Values.store.existingSecret }}
        key: {{ .root.Values.store.vaultKey }}
  {{- end }}
  {{- if and .root.Values.images.url .root.Values.images.existingSecret (ne .role "worker") }}
  {{- /* The router's providers may know an AWS key of their own; a shim has no file to say which one it means. */}}
  {{- $prefix := ternary "IMAGES" "AWS" (eq .role "router") }}
  - name: {{ $prefix }}_ACCESS_KEY_ID
    valueFrom:
      secretKeyRef:
        name: {{ .root.Values.images.existingSecret }}
        key: {{ .root.Values.images.accessKeyId }}
  - name: {{ $prefix }}_SECRET_ACCESS_KEY
    valueFrom:
      secretKeyRef:
        name: {{ .root.Values.images.existingSecret }}
        key: {{ .root.Values.images.secretAccessKey }}
  {{- end }}
  {{- with .values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "imagegate.hasCaBundle" -}}
{{- if or .Values.caBundle.existingConfigMap .Values.caBundle.existingSecret -}}true{{- end -}}
{{- end }}

{{/*
Everything below /etc/imagegate as sources of one projected volume: it is swapped as a whole when one of them changes,
which the binary sees. A subPath mount would never change.
*/}}
{{- define "imagegate.etcSources" -}}
{{- $root := .root -}}
{{- with include "imagegate.configMap" . }}
- configMap:
    name: {{ . }}
    items:
      - key: imagegate.yaml
        path: imagegate.yaml
{{- end }}
{{- include "imagegate.tlsSources" . }}
{{- with $root.Values.caBundle }}
{{- if .existingConfigMap }}
- configMap:
    name: {{ .existingConfigMap }}
    items:
      - key: {{ .key }}
        path: ca-bundle/ca.crt
{{- else if .existingSecret }}
- secret:
    name: {{ .existingSecret }}
    items:
      - key: {{ .key }}
        path: ca-bundle/ca.crt
{{- end }}
{{- end }}
{{- range $name, $credential := .values.credentials }}
{{- if and $credential $credential.asFile }}
- secret:
    name: {{ $credential.existingSecret }}
    items:
      - key: {{ $credential.key }}
        path: credentials/{{ $name }}
{{- end }}
{{- end }}
{{- end }}

{{- define "imagegate.tlsSources" -}}
{{- $tls := .root.Values.tls }}
{{- if ne (include "imagegate.tlsMode" .root) "off" }}
{{- $ownCa := or $tls.ca.existingConfigMap $tls.ca.existingSecret }}
- secret:
    name: {{ include "imagegate.tlsSecret" . }}
    items:
      - key: tls.crt
        path: tls/tls.crt
      - key: tls.key
        path: tls/tls.key
      {{- if not $ownCa }}
      - key: ca.crt
        path: tls/ca.crt
      {{- end }}
{{- if $tls.ca.existingConfigMap }}
- configMap:
    name: {{ $tls.ca.existingConfigMap }}
    items:
      - key: {{ $tls.ca.key }}
        path: tls/ca.crt
{{- else if $tls.ca.existingSecret }}
- secret:
    name: {{ $tls.ca.existingSecret }}
    items:
      - key: {{ $tls.ca.key }}
        path: tls/ca.crt
{{- end }}
{{- end }}
{{- end }}

{{- define "imagegate.volumeMounts" -}}
volumeMounts:
  {{- if include "imagegate.etcSources" . | trim }}
  - name: etc
    mountPath: /etc/imagegate
    readOnly: true
  {{- end }}
  {{- if .values.persistence }}
  - name: data
    mountPath: /data
  {{- end }}
  - name: tmp
    mountPath: /tmp
  {{- with .values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "imagegate.volumes" -}}
{{- with include "imagegate.etcSources" . | trim }}
- name: etc
  projected:
    # Readable for the group, which is podSecurityContext.fsGroup.
    defaultMode: 0440
    sources:
      {{- . | nindent 6 }}
{{- end }}
{{- with .values.persistence }}
- name: data
  {{- if .enabled }}
  persistentVolumeClaim:
    claimName: {{ .existingClaim | default (include "imagegate.named" $) }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .emptyDirSizeLimit }}
  {{- end }}
{{- end }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .values.tmpSizeLimit }}
{{- with .values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
