module github.com/rhizome-tunnel/rhizome/examples/compare

go 1.26.0

replace github.com/rhizome-tunnel/rhizome => ../..

require (
	github.com/inetaf/tcpproxy v0.0.0-20260515195445-c159a6051109
	github.com/rhizome-tunnel/rhizome v0.0.0-00010101000000-000000000000
)

require (
	github.com/pires/go-proxyproto v0.15.0 // indirect
	github.com/vishvananda/netlink v1.3.1 // indirect
	github.com/vishvananda/netns v0.0.5 // indirect
	go.yaml.in/yaml/v2 v2.4.2 // indirect
	golang.org/x/net v0.62.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	sigs.k8s.io/yaml v1.6.0 // indirect
)
