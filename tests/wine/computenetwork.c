/* computenetwork.dll: keeps the documents of endpoints and load balancers, without the rules of HNS.
 *
 * There is one network. An object is a GUID and its document; its handle is the address of an entry of a list.
 */
#define _COMPUTENETWORK_
#include <windows.h>
#include <objbase.h>
#include <computenetwork.h>
#include <wchar.h>

#define NETWORK L"{\"ID\":\"0a0b0c0d-0102-0304-0506-0708090a0b0c\",\"Name\":\"cbr0net\",\"Type\":\"L2Bridge\"}"
#define NOT_FOUND ((HRESULT)0x80070490)
#define LONGEST 8192

typedef struct Object {
    struct Object *next;
    wchar_t kind; /* e: endpoint, b: load balancer */
    GUID id;
    wchar_t document[LONGEST];
} Object;

static Object *objects;
static const GUID network = {0x0a0b0c0d, 0x0102, 0x0304, {5, 6, 7, 8, 9, 10, 11, 12}};
static int network_handle;
static LONG handles;
static HCN_NOTIFICATION_CALLBACK callback;
static void *callback_context;

static PWSTR copied(const wchar_t *text)
{
    size_t size = (wcslen(text) + 1) * sizeof(wchar_t);
    PWSTR made = CoTaskMemAlloc(size);
    memcpy(made, text, size);
    return made;
}

static HRESULT done(PWSTR *record)
{
    if (record)
        *record = NULL;
    return S_OK;
}

static HRESULT missing(PWSTR *record)
{
    if (record)
        *record = copied(L"{\"Success\":false,\"Error\":\"Element not found.\",\"ErrorCode\":2147943568}");
    return NOT_FOUND;
}

static Object *find(wchar_t kind, REFGUID id)
{
    Object *each = objects;
    while (each && !(each->kind == kind && IsEqualGUID(&each->id, id)))
        each = each->next;
    return each;
}

static HRESULT create(wchar_t kind, REFGUID id, PCWSTR settings, void **handle, PWSTR *record)
{
    static const GUID none;
    Object *made = calloc(1, sizeof *made);
    made->kind = kind;
    made->id = *id;
    if (IsEqualGUID(id, &none))
        CoCreateGuid(&made->id);
    wcsncpy(made->document, settings, LONGEST - 1);
    made->next = objects;
    objects = made;
    *handle = made;
    InterlockedIncrement(&handles);
    return done(record);
}

static HRESULT open_object(wchar_t kind, REFGUID id, void **handle, PWSTR *record)
{
    Object *found = find(kind, id);
    if (!found)
        return missing(record);
    *handle = found;
    InterlockedIncrement(&handles);
    return done(record);
}

static HRESULT close_handle(void *handle)
{
    if (!handle)
        return E_HANDLE;
    InterlockedDecrement(&handles);
    return S_OK;
}

static void as_text(REFGUID id, wchar_t *text)
{
    swprintf(text, 40, L"%08lX-%04X-%04X-%02X%02X-%02X%02X%02X%02X%02X%02X", (unsigned long)id->Data1, id->Data2,
             id->Data3, id->Data4[0], id->Data4[1], id->Data4[2], id->Data4[3], id->Data4[4], id->Data4[5],
             id->Data4[6], id->Data4[7]);
}

/* The document as it was given, with the id in front. */
static HRESULT query(void *handle, PWSTR *properties, PWSTR *record)
{
    static wchar_t made[LONGEST + 64];
    wchar_t id[40];
    Object *object = handle;
    as_text(&object->id, id);
    swprintf(made, LONGEST + 64, L"{\"ID\":\"%ls\",%ls", id, object->document + 1);
    *properties = copied(made);
    return done(record);
}

static HRESULT enumerate(wchar_t kind, PWSTR *ids, PWSTR *record)
{
    static wchar_t made[1 << 16];
    wchar_t id[40], *end = made;
    *end++ = L'[';
    for (Object *each = objects; each; each = each->next)
        if (each->kind == kind) {
            as_text(&each->id, id);
            end += swprintf(end, 48, L"%ls\"%ls\"", end == made + 1 ? L"" : L",", id);
        }
    wcscpy(end, L"]");
    *ids = copied(made);
    return done(record);
}

static HRESULT delete_object(wchar_t kind, REFGUID id, PWSTR *record)
{
    Object *found = find(kind, id), **at = &objects;
    if (!found)
        return missing(record);
    while (*at != found)
        at = &(*at)->next;
    *at = found->next; /* its memory stays: handles may be open */
    return done(record);
}

HRESULT WINAPI HcnEnumerateNetworks(PCWSTR Query, PWSTR *Networks, PWSTR *ErrorRecord)
{
    *Networks = copied(L"[\"0A0B0C0D-0102-0304-0506-0708090A0B0C\"]");
    return done(ErrorRecord);
}

HRESULT WINAPI HcnOpenNetwork(REFGUID Id, PHCN_NETWORK Network, PWSTR *ErrorRecord)
{
    if (!IsEqualGUID(Id, &network))
        return missing(ErrorRecord);
    *Network = &network_handle;
    InterlockedIncrement(&handles);
    return done(ErrorRecord);
}

HRESULT WINAPI HcnQueryNetworkProperties(HCN_NETWORK Network, PCWSTR Query, PWSTR *Properties, PWSTR *ErrorRecord)
{
    *Properties = copied(NETWORK);
    return done(ErrorRecord);
}

HRESULT WINAPI HcnCloseNetwork(HCN_NETWORK Network) { return close_handle(Network); }

HRESULT WINAPI HcnEnumerateEndpoints(PCWSTR Query, PWSTR *Endpoints, PWSTR *ErrorRecord)
{
    return enumerate(L'e', Endpoints, ErrorRecord);
}

HRESULT WINAPI HcnCreateEndpoint(HCN_NETWORK Network, REFGUID Id, PCWSTR Settings, PHCN_ENDPOINT Endpoint,
                                 PWSTR *ErrorRecord)
{
    return Network == &network_handle ? create(L'e', Id, Settings, Endpoint, ErrorRecord) : E_HANDLE;
}

HRESULT WINAPI HcnOpenEndpoint(REFGUID Id, PHCN_ENDPOINT Endpoint, PWSTR *ErrorRecord)
{
    return open_object(L'e', Id, Endpoint, ErrorRecord);
}

HRESULT WINAPI HcnQueryEndpointProperties(HCN_ENDPOINT Endpoint, PCWSTR Query, PWSTR *Properties, PWSTR *ErrorRecord)
{
    return query(Endpoint, Properties, ErrorRecord);
}

HRESULT WINAPI HcnDeleteEndpoint(REFGUID Id, PWSTR *ErrorRecord) { return delete_object(L'e', Id, ErrorRecord); }

HRESULT WINAPI HcnCloseEndpoint(HCN_ENDPOINT Endpoint) { return close_handle(Endpoint); }

HRESULT WINAPI HcnEnumerateLoadBalancers(PCWSTR Query, PWSTR *LoadBalancer, PWSTR *ErrorRecord)
{
    return enumerate(L'b', LoadBalancer, ErrorRecord);
}

HRESULT WINAPI HcnCreateLoadBalancer(REFGUID Id, PCWSTR Settings, PHCN_LOADBALANCER LoadBalancer, PWSTR *ErrorRecord)
{
    return create(L'b', Id, Settings, LoadBalancer, ErrorRecord);
}

HRESULT WINAPI HcnOpenLoadBalancer(REFGUID Id, PHCN_LOADBALANCER LoadBalancer, PWSTR *ErrorRecord)
{
    return open_object(L'b', Id, LoadBalancer, ErrorRecord);
}

HRESULT WINAPI HcnModifyLoadBalancer(HCN_LOADBALANCER LoadBalancer, PCWSTR Settings, PWSTR *ErrorRecord)
{
    wcsncpy(((Object *)LoadBalancer)->document, Settings, LONGEST - 1);
    return done(ErrorRecord);
}

HRESULT WINAPI HcnQueryLoadBalancerProperties(HCN_LOADBALANCER LoadBalancer, PCWSTR Query, PWSTR *Properties,
                                              PWSTR *ErrorRecord)
{
    return query(LoadBalancer, Properties, ErrorRecord);
}

HRESULT WINAPI HcnDeleteLoadBalancer(REFGUID Id, PWSTR *ErrorRecord) { return delete_object(L'b', Id, ErrorRecord); }

HRESULT WINAPI HcnCloseLoadBalancer(HCN_LOADBALANCER LoadBalancer) { return close_handle(LoadBalancer); }

HRESULT WINAPI HcnRegisterServiceCallback(HCN_NOTIFICATION_CALLBACK Callback, void *Context,
                                          HCN_CALLBACK *CallbackHandle)
{
    callback = Callback;
    callback_context = Context;
    *CallbackHandle = &callback;
    InterlockedIncrement(&handles);
    return S_OK;
}

HRESULT WINAPI HcnUnregisterServiceCallback(HCN_CALLBACK CallbackHandle)
{
    callback = NULL;
    return close_handle(CallbackHandle);
}

/* For tests: how many handles are open. */
__declspec(dllexport) LONG WINAPI OpenHandles(void) { return handles; }

/* For tests: HNS stops. */
__declspec(dllexport) void WINAPI Disconnect(void)
{
    if (callback)
        callback(HcnNotificationServiceDisconnect, callback_context, S_OK, NULL);
}
