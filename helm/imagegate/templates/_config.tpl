{{/* The files that the binary reads (docs/configuration.md), made of `config` and of what the chart itself knows. */}}

{{- define "imagegate.tlsConfig" -}}
{{- if eq (include "imagegate.tlsMode" .root) "off" -}}
tls: "off"
{{- else -}}
tls:
  certificate: /etc/imagegate/tls/tls.crt
  key: /etc/imagegate/tls/tls.key
  ca: /etc/imagegate/tls/ca.crt
  {{- with .clients }}
  clients:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end }}

{{/* Who may call the router: the shim and whoever is named, or everybody who has an API key. */}}
{{- define "imagegate.routerClients" -}}
{{- if .Values.tls.requireRouterClients -}}
{{- $shim := include "imagegate.peerName" (dict "root" . "suffix" "shim") -}}
{{- prepend (.Values.tls.extraRouterClients | default list) $shim | toJson -}}
{{- else -}}[]{{- end -}}
{{- end }}

{{- define "imagegate.workerClients" -}}
{{- $router := include "imagegate.peerName" (dict "root" . "suffix" "router") -}}
{{- prepend (.Values.tls.extraWorkerClients | default list) $router | toJson -}}
{{- end }}

{{/* The worker addresses in the router's file. */}}
{{- define "imagegate.workerUris" -}}
{{- $root := . -}}
{{- $uris := dict -}}
{{- range include "imagegate.components" . | fromJsonArray -}}
{{- if eq .role "worker" -}}
{{- $host := include "imagegate.named" (dict "root" $root "suffix" .suffix) -}}
{{- $_ := set $uris .values.provider (printf "%s://%s:50061" (include "imagegate.scheme" $root) $host) -}}
{{- end -}}
{{- end -}}
{{- toJson $uris -}}
{{- end }}

{{/* What somebody's money can be spent with: credentials in the values, and virtual keys in the files. */}}
{{- define "imagegate.credentialPaths" -}}
{{- $paths := list -}}
{{- $keys := .Values.config.virtual_keys | default .Values.config.virtualKeys | default dict -}}
{{- range $id := keys $keys | sortAlpha -}}{{- $paths = append $paths (printf "config.virtual_keys.%s" $id) -}}{{- end -}}
{{- range $component := include "imagegate.components" . | fromJsonArray -}}
{{- $at := ternary (printf "workers.%s" ($component.worker | default "")) $component.role (eq $component.role "worker") -}}
{{- range $name := keys ($component.values.credentials | default dict) | sortAlpha -}}
{{- $paths = append $paths (printf "%s.credentials.%s" $at $name) -}}
{{- end -}}
{{- $config := $component.values.config | default dict -}}
{{- range $id := keys ($config.virtual_keys | default $config.virtualKeys | default dict) | sortAlpha -}}
{{- $paths = append $paths (printf "%s.config.virtual_keys.%s" $at $id) -}}
{{- end -}}
{{- end -}}
{{- toJson $paths -}}
{{- end }}

{{/* `auth` of the router's file: open only while there is nothing to protect, or where somebody wrote it. */}}
{{- define "imagegate.auth" -}}
{{- if .Values.config.auth -}}
{{- .Values.config.auth -}}
{{- else if not (or .Values.config.api_keys .Values.config.apiKeys .Values.config.jwt_issuers .Values.config.jwtIssuers (include "imagegate.credentialPaths" . | fromJsonArray)) -}}
open
{{- end -}}
{{- end }}

{{- define "imagegate.routerConfig" -}}
{{- $config := deepCopy .Values.config -}}
{{- $host := include "imagegate.listenHost" . -}}
{{- $_ := set $config "listen" (dict "grpc" (printf "%s:50051" $host) "admin" (printf "%s:9090" $host)) -}}
{{- $_ := set $config "data_dir" "/data" -}}
{{- $workers := deepCopy ($config.workers | default dict) -}}
{{- range $provider, $uri := include "imagegate.workerUris" . | fromJson -}}{{- $_ := set $workers $provider $uri -}}{{- end -}}
{{- $_ := set $config "workers" $workers -}}
{{- $limits := deepCopy ($config.limits | default dict) -}}
{{- $_ := set $limits "total_timeout_ms" (mul (int .Values.deadlines.totalSeconds) 1000) -}}
{{- $_ := set $limits "attempt_timeout_ms" (mul (int .Values.deadlines.attemptSeconds) 1000) -}}
{{- $_ := set $limits "max_body_bytes" (int64 .Values.maxBodyBytes) -}}
{{- $_ := set $config "limits" $limits -}}
{{- with include "imagegate.auth" . -}}{{- $_ := set $config "auth" . -}}{{- end -}}
{{- $_ := set $config "shutdown_delay_s" (int (include "imagegate.shutdownDelaySeconds" .)) -}}
{{- $_ := set $config "shutdown_grace_s" (int .Values.deadlines.totalSeconds) -}}
{{- if .Values.redis.existingSecret -}}
{{- $_ := set $config "redis" (dict "url" (dict "env" "REDIS_URL") "prefix" .Values.redis.prefix "timeout_ms" (int .Values.redis.timeoutMs) "max_answer_bytes" (int .Values.redis.maxAnswerBytes)) -}}
{{- end -}}
{{- with include "imagegate.bucket" . -}}{{- $_ := set $config "images" (fromJson .) -}}{{- end -}}
{{- if .Values.store.existingSecret -}}
{{- $_ := set $config "store" (dict "url" (dict "env" "STORE_URL")) -}}
{{- $_ := set $config "vault" (dict "key" (dict "env" "VAULT_KEY")) -}}
{{- else if gt (int (include "imagegate.maxReplicas" (dict "values" .Values.router))) 1 -}}
{{- /* One file for several routers, perhaps on a network volume, would be broken sooner or later. */ -}}
{{- $_ := set $config "store" "off" -}}
{{- end -}}
{{ toYaml $config }}
{{ include "imagegate.tlsConfig" (dict "root" . "clients" (include "imagegate.routerClients" . | fromJsonArray)) }}
{{- end }}

{{/* `images` of the router's file as JSON; empty: there is no bucket. */}}
{{- define "imagegate.bucket" -}}
{{- if .Values.images.url -}}
{{- $bucket := dict "url" .Values.images.url -}}
{{- with .Values.images.region -}}{{- $_ := set $bucket "region" . -}}{{- end -}}
{{- with .Values.images.endpoint -}}{{- $_ := set $bucket "endpoint" . -}}{{- end -}}
{{- if .Values.images.allowHttp -}}{{- $_ := set $bucket "allow_http" true -}}{{- end -}}
{{- if .Values.images.virtualHosted -}}{{- $_ := set $bucket "virtual_hosted" true -}}{{- end -}}
{{- if .Values.images.existingSecret -}}
{{- $_ := set $bucket "access_key_id" (dict "env" "IMAGES_ACCESS_KEY_ID") -}}
{{- $_ := set $bucket "secret_access_key" (dict "env" "IMAGES_SECRET_ACCESS_KEY") -}}
{{- end -}}
{{ toJson $bucket }}
{{- end -}}
{{- end }}

{{/* A worker's file. It fetches the images that requests name, so the router's `egress` holds for it too. */}}
{{- define "imagegate.workerConfig" -}}
{{- $config := deepCopy (.values.config | default dict) -}}
{{- if and .root.Values.config.egress (not $config.egress) -}}{{- $_ := set $config "egress" .root.Values.config.egress -}}{{- end -}}
{{- $_ := set $config "data_dir" "/tmp" -}}
{{- $_ := set $config "shutdown_delay_s" (int (include "imagegate.shutdownDelaySeconds" .root)) -}}
{{- $_ := set $config "shutdown_grace_s" (int .root.Values.deadlines.attemptSeconds) -}}
{{ toYaml $config }}
{{ include "imagegate.tlsConfig" (dict "root" .root "clients" (include "imagegate.workerClients" .root | fromJsonArray)) }}
{{- end }}

{{/* The ConfigMap with a component's file; a shim has none. */}}
{{- define "imagegate.configMap" -}}
{{- if eq .role "router" -}}
{{- .root.Values.existingConfigMap | default (include "imagegate.named" .) -}}
{{- else if eq .role "worker" -}}
{{- .values.existingConfigMap | default (include "imagegate.named" .) -}}
{{- end -}}
{{- end }}

{{- define "imagegate.configFile" -}}
{{- if eq .role "router" -}}{{ include "imagegate.routerConfig" .root }}{{- else -}}{{ include "imagegate.workerConfig" . }}{{- end -}}
{{- end }}
