{{/*
The headless Service of a router or worker. Callers resolve its name to the address of every ready pod and balance by
themselves; one address in front of them would pin every caller's only HTTP/2 connection to one pod.
*/}}
{{- define "imagegate.headlessService" -}}
{{- $service := .values.service }}
{{- $port := ternary 50051 50061 (eq .role "router") }}
apiVersion: v1
kind: Service
metadata:
  {{- include "imagegate.metadata" (dict "root" .root "name" (include "imagegate.named" .) "component" . "labels" $service.labels "annotations" $service.annotations) | nindent 2 }}
spec:
  type: ClusterIP
  clusterIP: None
  # A pod that drains still answers, but nobody new shall find it.
  publishNotReadyAddresses: false
  {{- with include "imagegate.ipFamilies" .root | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  ports:
    - name: grpc
      port: {{ $port }}
      targetPort: grpc
      appProtocol: {{ include "imagegate.grpcProtocol" (dict "root" .root "service" $service) }}
  selector:
    {{- include "imagegate.selectorLabels" . | nindent 4 }}
{{- end }}

{{/* HTTP/2 without TLS has a name of Kubernetes' own; with TLS the protocol is told in the handshake. */}}
{{- define "imagegate.grpcProtocol" -}}
{{- .service.appProtocol | default (ternary "kubernetes.io/h2c" "https" (eq (include "imagegate.tlsMode" .root) "off")) -}}
{{- end }}
