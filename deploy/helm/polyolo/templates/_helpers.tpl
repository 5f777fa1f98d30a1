{{/* Labels of everything, and those by which NetworkPolicies of tenants know our pods. */}}
{{- define "polyolo.labels" -}}
app.kubernetes.io/name: polyolo
app.kubernetes.io/instance: {{ .root.Values.platform }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "polyolo.metadata" -}}
name: {{ .root.Values.platform }}-{{ .component }}
namespace: {{ .root.Release.Namespace }}
labels:
  {{- include "polyolo.labels" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* What the restricted Pod Security Standard wants of a pod, and of a container. */}}
{{- define "polyolo.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "polyolo.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
runAsNonRoot: true
{{- end }}

{{- define "polyolo.spread" -}}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "polyolo.labels" $ | nindent 6 }}
{{- end }}
{{- end }}

{{/* The namespaces of this platform's tenants. */}}
{{- define "polyolo.tenants" -}}
namespaceSelector:
  matchLabels:
    app.kubernetes.io/managed-by: polyolo
    polyolo/platform: {{ .Values.platform }}
{{- end }}

{{- define "polyolo.dns" -}}
- ports:
    {{- range $port := .Values.networkPolicy.dnsPorts }}
    {{- range list "UDP" "TCP" }}
    - {port: {{ $port }}, protocol: {{ . }}}
    {{- end }}
    {{- end }}
{{- end }}
