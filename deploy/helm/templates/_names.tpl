{{- define "fgm.labels" -}}
app.kubernetes.io/name: fgm
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
